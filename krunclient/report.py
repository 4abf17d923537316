"""What a child tells the supervisor on a pipe: where its seccomp listener is, or an error.

    listener NUMBER\n                                a descriptor of the child's
    CLASS\0WHAT\0THING\0WHY\0REMEDY                  an error, up to the end of the pipe

One may follow the other. A VMM that its guest has taken over can write anything.
"""

from __future__ import annotations

from krunclient import errors
from krunclient.errors import LaunchError, VmError
from krunclient.log import write_all

MAX_FIELD_CHARACTERS = 1000
MAX_BYTES = 8192
LISTENER = b"listener "


def send_listener(descriptor: int, listener: int) -> None:
    write_all(descriptor, LISTENER + b"%d\n" % listener)


def send_error(descriptor: int, error: LaunchError) -> None:
    """The fields are short enough for the pipe to take them at once."""
    fields = (type(error).__name__, *(field[:MAX_FIELD_CHARACTERS] for field in error.args))
    write_all(descriptor, "\0".join(fields).encode("utf-8", "surrogateescape"))


class Report:
    """What has been read so far."""

    def __init__(self) -> None:
        self._data = b""
        self._has_listener = False

    def feed(self, data: bytes) -> None:
        self._data = (self._data + data)[:MAX_BYTES]

    @property
    def is_full(self) -> bool:
        """No honest report is as long."""
        return len(self._data) == MAX_BYTES

    def take_listener(self) -> int | None:
        """The number of the seccomp listener, once, as soon as it is known."""
        line, newline, rest = self._data.partition(b"\n")
        number = line.removeprefix(LISTENER)
        if self._has_listener or not newline or number == line or not number.isdigit():
            return None
        self._has_listener, self._data = True, rest
        return int(number[:10])

    def error(self, root_path: str) -> LaunchError | None:
        """The error that was reported, if any; one of its own for what can't be read."""
        if not self._data:
            return None
        try:
            kind, *fields = self._data.decode("utf-8", "surrogateescape").split("\0")
            what, thing, why, remedy = (field[:MAX_FIELD_CHARACTERS] for field in fields)
            return errors.by_name()[kind](what, thing, why, remedy)
        except (ValueError, KeyError):
            return VmError(
                "the VM has ended",
                root_path,
                "the VMM's report can't be read",
                "look at what the guest runs: it may have taken the VMM over",
            )
