"""krunclient's own messages, and the table of their events: one line each, never on stdout.

For people `krunclient: LEVEL: TEXT`; for machines one JSON object a line, with the same text as
`message`, the name of the event, and its fields.
"""

from __future__ import annotations

import os
import select
import time

from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunclient.errors import LaunchError

LEVELS = ("error", "warning", "info", "debug")
FORMATS = ("text", "json")
MAX_SHORT_CHARACTERS = 300  # of up to 12 bytes each in JSON
MAX_LINE_BYTES = 4096  # PIPE_BUF, which a pipe that can be written to has room for, pipe(7)
PATIENCE_MILLISECONDS = 1000  # how long to wait for a slow reader; then lines are lost


class Event(Record):
    """One row of docs/OPERATIONS.md's table. `name`, for machines, is the same in each version."""

    name: str
    level: str
    when: str
    fields: tuple[str, ...] = ()


START = Event(
    name="start",
    level="info",
    when="before anything is done",
    fields=("libkrun", "vcpus", "memory_mib"),
)
FEW_OPEN_FILES = Event(
    name="few-open-files",
    level="warning",
    when="the limit on open files is below 16384",
    fields=("open_files",),
)
OVERCOMMITTED = Event(
    name="overcommitted",
    level="warning",
    when="the guest is given more vCPUs than krunclient may use processors, or more memory than is"
    " available",
    fields=("vcpus", "processors", "memory_mib", "available_mib"),
)
VMM_STARTED = Event(
    name="vmm-started", level="info", when="the VMM's process is there", fields=("vmm_pid",)
)
CONFINED = Event(name="confined", level="debug", when="the VMM is behind its walls")
READY = Event(
    name="ready", level="info", when="the port accepts connections", fields=("milliseconds",)
)
HEALTHY = Event(name="healthy", level="info", when="with `--health-path`: the app is well")
UNHEALTHY = Event(
    name="unhealthy",
    level="warning",
    when="with `--health-path`: it is not",
    fields=("why",),
)
STOPPING = Event(name="stopping", level="info", when="the app is asked to stop", fields=("signal",))
FORCED = Event(name="forced", level="info", when="the VM is ended by force", fields=("signal",))
ENDED = Event(
    name="ended",
    level="info",
    when="the end of the VM",
    fields=(
        *("how", "app_status", "stopped_by", "forced"),
        *("seconds", "processor_seconds", "peak_memory_mib", "lost_mib"),
    ),
)
LIBKRUN = Event(name="libkrun", level="warning", when="libkrun logged an error")
LIBKRUN_NOTE = Event(
    name="libkrun-note",
    level="debug",
    when="libkrun logged an error that tells of nothing wrong",
)
PASST = Event(name="passt", level="debug", when="passt said something")
NOTIFY = Event(name="notify", level="warning", when="a service manager could not be told")
METRICS = Event(name="metrics", level="warning", when="the file of metrics could not be written")
FAILED = Event(
    name="failed",
    level="error",
    when="krunclient failed",
    fields=("what", "thing", "why", "remedy", "status"),
)
CONSOLE = Event(
    name="console",
    level="info",
    when="with `--console`: a line of the guest's kernel or of libkrun's log",
)
EVENTS = (
    *(START, FEW_OPEN_FILES, OVERCOMMITTED, VMM_STARTED, CONFINED, READY, HEALTHY, UNHEALTHY),
    *(STOPPING, FORCED, ENDED),
    *(LIBKRUN, LIBKRUN_NOTE, PASST, NOTIFY, METRICS, FAILED, CONSOLE),
)


class Log:
    """Writes the messages of `level` and of the levels above it to a file descriptor.

    `context` goes into each JSON object: what the messages of one launch have in common.
    """

    def __init__(
        self, level: str, form: str = "text", descriptor: int = 2, **context: str | int
    ) -> None:
        self._level = level
        self._form = form
        self._descriptor = descriptor
        self._writer: int | None = None
        self._patience = PATIENCE_MILLISECONDS
        self._context = context if "pid" in context else {"pid": os.getpid(), **context}

    def with_context(self, **context: str | int) -> Log:
        """The same log with more context."""
        return Log(self._level, self._form, self._descriptor, **{**self._context, **context})

    def failure(self, error: LaunchError) -> None:
        what, thing, why, remedy = error.args
        fields = {"what": what, "thing": thing, "why": why, "remedy": remedy}
        self.write(FAILED, str(error), **fields, status=error.status)

    def writes(self, event: Event) -> bool:
        """Whether messages of this event's level are written."""
        return LEVELS.index(event.level) <= LEVELS.index(self._level)

    def write(self, event: Event, text: str, **fields: str | float | None) -> None:
        """One message. Raises TypeError for fields that are not those of the event's row."""
        if tuple(fields) != event.fields:
            raise TypeError(f"the event {event.name} has the fields {event.fields}")
        if self.writes(event):
            line = f"krunclient: {event.level}: {one_line(text)}"
            self._put(line if self._form == "text" else self._json(event, text, fields))

    def pass_on(self, event: Event, line: str) -> None:
        """A line of somebody else's that the user asked for, at whatever level."""
        self._put(line if self._form == "text" else self._json(event, line, {}))

    def _json(self, event: Event, text: str, fields: Mapping[str, str | float | None]) -> str:
        head = {"time": timestamp(), "level": event.level, "event": event.name}
        line = _json_object({**head, **self._context, **fields, "message": text})
        if len(line) >= MAX_LINE_BYTES:
            short = {name: value for name, value in fields.items() if not isinstance(value, str)}
            start = text[:MAX_SHORT_CHARACTERS]
            line = _json_object({**head, "pid": self._context["pid"], **short, "message": start})
        return line

    def _put(self, line: str) -> None:
        """krunclient must react to a stop even while nobody reads its messages, or slowly: so it
        waits for the reader for a bounded time in all, until the reader has caught up.
        """
        if self._writer is None:
            self._writer = _writer(self._descriptor)
        data = line.encode("utf-8", "backslashreplace")
        if len(data) >= MAX_LINE_BYTES:
            data = data[: MAX_LINE_BYTES - 1].decode("utf-8", "ignore").encode()
        poll = select.poll()
        poll.register(self._writer, select.POLLOUT)
        if poll.poll(0):
            self._patience = PATIENCE_MILLISECONDS
        began = time.monotonic()
        if poll.poll(self._patience):
            write_all(self._writer, data + b"\n", self._patience)
        waited = round((time.monotonic() - began) * 1000)
        self._patience = max(0, self._patience - waited)


def timestamp() -> str:
    """The time of day in UTC to the microsecond, RFC 3339."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 10**6)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{microseconds:06}Z"


def _json_object(values: Mapping[str, str | float | None]) -> str:
    """RFC 8259. The module json would serve; importing it costs a launch about 10 ms."""
    from _json import encode_basestring_ascii

    def encoded(value: str | float | None) -> str:
        if isinstance(value, str):
            return encode_basestring_ascii(value)
        if value is None:
            return "null"
        return str(value).lower() if isinstance(value, bool) else repr(value)

    return f"{{{', '.join(f'{encoded(name)}: {encoded(values[name])}' for name in values)}}}"


def one_line(text: str) -> str:
    """The text with every control character escaped, so that it can't forge a line."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _writer(descriptor: int) -> int:
    """A terminal that says it has room may have too little, and block: one is written to through a
    file description of our own that does not, since the terminal's own is shared with others.
    """
    if not os.isatty(descriptor):
        return descriptor
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        return descriptor  # another user's


def write_all(descriptor: int, data: bytes, patience: int = PATIENCE_MILLISECONDS) -> bool:
    """write(2) until all is written. False if that can't be: the reader is gone, say.

    `patience` is how many milliseconds each part may wait if the descriptor does not block.
    """
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            if not select.select([], [descriptor], [], patience / 1000)[1]:
                return False
        except OSError:
            return False
    return True
