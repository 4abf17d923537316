"""--metrics: what a VM is doing, in a file of Prometheus' text form, exposition_formats.md.

The file is made anew at each change of phase and every few seconds, and goes with the supervisor: a
process of its own, which does nothing but wait for that, removes it where the supervisor could not.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from krunclient import __version__
from krunclient.errors import PermissionDeniedError, UsageError, failed_call
from krunclient.sandbox import process
from krunclient.supervisor import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from krunclient.bindings.libc import Libc
    from krunclient.supervisor.usage import Usage

PHASES = ("setup", "booting", "ready", "stopping", "failed")
WHAT = "--metrics can't be used"
FIRST_LINE = b"# HELP krunclient_info "


class Metrics:
    """The file of one VM. `labels` tell it from others; `processes` are those of the VM."""

    SECONDS = 5  # between two files: Prometheus asks every 15 s, more often or less

    def __init__(self, path: str, labels: Mapping[str, str], processes: tuple[int, ...]) -> None:
        self._path = path
        self._labels = labels
        self._processes = processes
        self._started = time.time() - usage.seconds_since_start("self")

    def write(self, phase: str, *, healthy: bool | None) -> None:
        """`healthy` is None if nobody looks, or has not yet. Raises OSError."""
        used = usage.of(self._processes)
        lines = render(self._labels, phase, self._started, used, healthy=healthy)
        _replace(self._path, "".join(f"{line}\n" for line in lines))


def render(
    labels: Mapping[str, str], phase: str, started: float, used: Usage, *, healthy: bool | None
) -> Iterator[str]:
    """The lines. `started` is in seconds since 1970."""

    def metric(name: str, kind: str, text: str, value: float, **more: str) -> Iterator[str]:
        yield f"# HELP krunclient_{name} {text}"
        yield f"# TYPE krunclient_{name} {kind}"
        yield sample(name, value, **more)

    def sample(name: str, value: float, **more: str) -> str:
        pairs = {**labels, **more}
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in pairs.items())
        return f"krunclient_{name}{{{inner}}} {value!r}"

    about = {"pid": str(os.getpid()), "version": __version__}
    yield from metric("info", "gauge", "A VM that runs.", 1, **about)
    yield "# HELP krunclient_phase The phase that it is in."
    yield "# TYPE krunclient_phase gauge"
    for one in PHASES:
        yield sample("phase", int(one == phase), phase=one)
    if healthy is not None:
        yield from metric("healthy", "gauge", "Whether its app is healthy.", int(healthy))
    text = "When krunclient was started, since 1970."
    yield from metric("start_time_seconds", "gauge", text, round(started, 2))
    text = "Processor time of its processes."
    yield from metric("processor_seconds_total", "counter", text, used.processor_seconds)
    text = "Resident memory of its processes."
    yield from metric("resident_memory_bytes", "gauge", text, used.resident_bytes)


def _escaped(text: str) -> str:
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _replace(path: str, text: str) -> None:
    """Put a file there as a whole: who reads it finds the old one or this. Raises OSError."""
    new = os.path.join(os.path.dirname(path), f".krunclient-{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o644)
    try:
        try:
            os.fchmod(descriptor, 0o644)  # node_exporter is another user
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
        os.rename(new, path)
    except OSError:
        os.unlink(new)
        raise


def claim(libc: Libc, path: str) -> None:
    """Check that the file can be there, and let it go when this process does.

    To be called before there are children, which would hold the file's life. Raises UsageError for
    a path that something else has, PermissionDeniedError, HostError.
    """
    try:
        _check_that_it_is_free(path)
        _replace(path, "")
    except OSError as error:
        is_denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        kind = PermissionDeniedError if is_denied else UsageError
        remedy = "give a file, or a directory, that this user can write"
        raise failed_call(WHAT, path, error, remedy, kind) from None
    supervisor = os.getpid()
    ends, held = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os.close(ends)
        return
    try:
        os.setsid()  # a signal to the supervisor's process group is not for this one
        process.set_dumpable(libc, False)
        os.close(held)
        libc.close_range(0, ends - 1, 0)
        libc.close_range(ends + 1, 2**32 - 1, 0)
        os.read(ends, 1)
        remove(path, supervisor)
    finally:
        os._exit(0)


def remove(path: str, supervisor: int) -> None:
    """Remove the file of a supervisor's, if it is not gone yet, nor another's by now."""
    try:
        with open(path, "rb") as file:
            text = file.read()
        if not text or f',pid="{supervisor}",'.encode() in text:
            os.unlink(path)
    except OSError:
        pass


def _check_that_it_is_free(path: str) -> None:
    """Raises UsageError, OSError."""
    try:
        is_file = stat.S_ISREG(os.lstat(path).st_mode)
        if is_file:
            with open(path, "rb") as file:
                if file.read(len(FIRST_LINE)) in (b"", FIRST_LINE):
                    return
    except FileNotFoundError:
        return
    why, remedy = "something else is there", "give a path that nothing has"
    raise UsageError(WHAT, path, why, remedy)
