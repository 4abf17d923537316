"""What the VMM child tells the supervisor on a pipe: where its seccomp listener is, or an error."""

from __future__ import annotations

from krunclient.errors import ERRORS_BY_STATUS, LaunchError, VmError
from krunclient.log import write_all

MAX_FIELD_CHARACTERS = 1000
LISTENER = b"listener "  # a line of this form names the descriptor of the seccomp listener


def send(descriptor: int, error: LaunchError) -> None:
    """Tell the supervisor. The fields are short enough for the pipe to take them at once."""
    fields = (str(error.status), *(field[:MAX_FIELD_CHARACTERS] for field in error.args))
    write_all(descriptor, "\0".join(fields).encode("utf-8", "surrogateescape"))


def read(data: bytes, root_path: str) -> LaunchError:
    """What `send` wrote. A VMM that was taken over can have written anything."""
    try:
        status, what, thing, why, remedy = data.decode("utf-8", "surrogateescape").split("\0")
        fields = (field[:MAX_FIELD_CHARACTERS] for field in (what, thing, why, remedy))
        return ERRORS_BY_STATUS[int(status)](*fields)
    except (ValueError, KeyError):
        return VmError(
            "the VM has ended",
            root_path,
            "the VMM's report can't be read",
            "look at what the guest runs: it may have taken the VMM over",
        )
