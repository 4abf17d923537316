"""--metrics: what a VM is doing, in a file of Prometheus' text form, exposition_formats.md.

The file is made anew at each change of phase and every few seconds, and goes with the supervisor: a
process of its own, which does nothing but wait for that, removes it where the supervisor could not.
Others may be able to write to its directory, a guest even: nothing that they put there is waited
for, followed or taken for ours.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from krunclient import __version__
from krunclient.errors import (
    BusyError,
    HostError,
    PermissionDeniedError,
    UsageError,
    failed_call,
)
from krunclient.sandbox import process
from krunclient.supervisor import presence, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from krunclient.bindings.libc import Libc
    from krunclient.supervisor.usage import Usage

PHASES = ("setup", "booting", "ready", "stopping", "failed")
WHAT = "--metrics can't be used"
MAX_BYTES = 65536
# Each file begins with it, the supervisor's process id and a mark of its own.
HEAD = "# krunclient "


class Metrics:
    """The file of one VM. `labels` tell it from others'."""

    SECONDS = 5  # between two files: Prometheus asks every 15 s, more often or less

    def __init__(self, path: str, labels: Mapping[str, str]) -> None:
        mark = os.urandom(8).hex()
        self._path = path
        self._new = os.path.join(os.path.dirname(path), f".krunclient-{mark}.tmp")
        self._head = f"{HEAD}{os.getpid()} {mark}\n"
        self._labels = labels
        self._processes: tuple[int, ...] = (os.getpid(),)
        self._started = time.time() - usage.seconds_since_start("self")
        self._waiter = self._held = -1

    def claim(self, libc: Libc) -> None:
        """Make the file, and let it go when this process does.

        To be called before there are children, which would hold the file's life. Raises BusyError
        for the file of a VM that runs, UsageError for a path that something else has,
        PermissionDeniedError, HostError.
        """
        self._check_that_it_is_free()
        ends, self._held = os.pipe2(os.O_CLOEXEC)
        self._waiter = os.fork()
        if self._waiter == 0:
            self._wait(libc, ends)
        os.close(ends)
        try:
            self.write(PHASES[0], healthy=None)
        except OSError as error:
            raise _error(self._path, error) from None

    def measure(self, processes: tuple[int, ...]) -> None:
        """From now on, these: the VM's."""
        self._processes = processes

    def write(self, phase: str, *, healthy: bool | None) -> None:
        """`healthy` is None if nobody looks, or has not yet. Raises OSError."""
        used = usage.of(self._processes)
        lines = render(self._labels, phase, self._started, used, healthy=healthy)
        self._replace((self._head + "".join(f"{line}\n" for line in lines)).encode())

    def end(self) -> None:
        self._remove()
        os.close(self._held)
        os.waitpid(self._waiter, 0)

    def _replace(self, data: bytes) -> None:
        """Put a file there as a whole: who reads it finds the old one or this. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._new, flags, 0o644)
        except FileExistsError:
            os.unlink(self._new)
            descriptor = os.open(self._new, flags, 0o644)
        try:
            try:
                os.fchmod(descriptor, 0o644)  # node_exporter is another user
                while data:
                    data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)
            os.rename(self._new, self._path)
        except OSError:
            os.unlink(self._new)
            raise

    def _wait(self, libc: Libc, ends: int) -> None:
        """In the process that waits for the supervisor's end. Never returns."""
        try:
            os.setsid()  # a signal to the supervisor's process group is not for this one
            process.set_dumpable(libc, False)
            libc.close_range(0, ends - 1, 0)
            libc.close_range(ends + 1, 2**32 - 1, 0)
            os.read(ends, 1)
            self._remove()
            os.unlink(self._new)
        finally:
            os._exit(0)

    def _remove(self) -> None:
        """If it is not gone yet, nor another's by now."""
        try:
            if _read(self._path).startswith(self._head.encode()):
                os.unlink(self._path)
        except OSError:
            pass

    def _check_that_it_is_free(self) -> None:
        """Another may have been left by a supervisor that was killed. Raises LaunchError."""
        try:
            found = _read(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _error(self._path, error) from None
        words = found.partition(b"\n")[0].split()
        if not found.startswith(HEAD.encode()) or len(words) != len(self._head.split()):
            why, remedy = "something else is there", "give a path that nothing has"
            raise UsageError(WHAT, self._path, why, remedy)
        number = words[2].decode("ascii", "replace")
        if number != str(os.getpid()) and presence.is_supervisor(number):
            why = f"process {number} keeps its own there"
            raise BusyError(WHAT, self._path, why, "give each VM another, or a directory")


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


def _read(path: str) -> bytes:
    """The beginning of a regular file of this user's; nothing of anything else. Raises OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            return b""
        raise
    try:
        found = os.fstat(descriptor)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        return os.read(descriptor, MAX_BYTES) if is_own else b""
    finally:
        os.close(descriptor)


def _error(path: str, error: OSError) -> Exception:
    remedy = "give a file, or a directory, that this user can write"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return failed_call(WHAT, path, error, remedy, PermissionDeniedError)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return failed_call(WHAT, path, error, remedy, UsageError)
    return failed_call(WHAT, path, error, "make room on that file system", HostError)
