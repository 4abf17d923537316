"""--cpu-quota, --memory-max and --pids-max: a cgroup of the VM's own, cgroups(7) and cgroup-v2.rst.

It is made inside the cgroup that krunclient was started in. A cgroup that has processes can't hand
controllers down, unless it is the first of all: so krunclient goes into one beside the VM's.

    the cgroup that krunclient was started in        has no process any more
    ├── krunclient-PID                               the VMM, and passt: within the limits
    └── krunclient-PID-supervisor                    krunclient itself
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from krunclient.errors import HostError, LaunchError, PermissionDeniedError, failed_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.model import Limits

PREFIX = "krunclient-"
PERIOD = 100000  # cpu.max counts microseconds in so many
WHAT = "limits can't be set"
DELEGATE = "start it in a cgroup of its own, by systemd-run --scope -p Delegate=yes say"
LOCK_TRIES, LOCK_SECONDS = 100, 0.01
HAS_OTHERS = "other processes are in that cgroup"


def find() -> str:
    """The directory of the cgroup that this process is in. Raises HostError, OSError."""
    with open("/proc/self/cgroup") as file:
        paths = [line.partition("::")[2].rstrip("\n") for line in file if line.startswith("0::")]
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split()[3:5] for line in file if " - cgroup2 " in line]
    remedy = "mount cgroup2 at /sys/fs/cgroup, which systemd does by itself"
    if not paths or not mounts:
        raise HostError(WHAT, "cgroup v2", "it is not mounted", remedy)
    # A mount hides those before it; it may show a part of the tree alone.
    for top, mount_point in reversed(mounts):
        below = os.path.relpath(paths[0], _decoded(top))
        if not below.startswith(".."):
            return os.path.normpath(os.path.join(_decoded(mount_point), below))
    raise HostError(WHAT, paths[0], "no mounted cgroup2 shows that cgroup", remedy)


def wanted(limits: Limits) -> dict[str, str]:
    """The controllers' files and what goes into them."""
    files = {}
    if limits.cpu_percent is not None:
        files["cpu.max"] = f"{limits.cpu_percent * PERIOD // 100} {PERIOD}"
    if limits.memory_mib is not None:
        files["memory.max"] = str(limits.memory_mib * 2**20)
    if limits.pids is not None:
        files["pids.max"] = str(limits.pids)
    return files


def check(parent: str, limits: Limits | None) -> None:
    """Look whether a VM's cgroup could be made there, changing nothing. Raises LaunchError."""
    try:
        has = _read(parent, "cgroup.controllers").split()
        others = _read(parent, "cgroup.procs").split()
        read_only = os.statvfs(parent).f_flag & os.ST_RDONLY
    except OSError as error:
        raise _error(parent, error) from None
    for controller in _controllers(limits) if limits else ():
        if controller not in has:
            why = f"it has no controller {controller}"
            remedy = f"{DELEGATE}, on a host that has it in cgroup v2"
            raise HostError(WHAT, parent, why, remedy)
    if read_only:
        raise _error(parent, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not os.access(parent, os.W_OK):
        raise _error(parent, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    if not _is_first(parent) and set(others) - {str(os.getpid())}:
        raise HostError(WHAT, parent, HAS_OTHERS, DELEGATE)


class Cgroup:
    """The VM's, made with its limits. This process is in the one beside it from then on."""

    def __init__(self, limits: Limits) -> None:
        """Raises LaunchError."""
        try:
            self._parent = parent = find()
        except OSError as error:
            raise _error("cgroup v2", error) from None
        self._limits = limits
        self._vms = f"{parent}/{PREFIX}{os.getpid()}"
        self._supervisors = f"{parent}/{PREFIX}{os.getpid()}-supervisor"
        self._undo: list[Callable[[], None]] = []
        try:
            check(parent, limits)
            with _Lock(parent):
                self._make()
        except OSError as error:
            self.remove()
            raise _error(parent, error) from None
        except LaunchError:
            self.remove()
            raise

    def _make(self) -> None:
        parent = self._parent
        _remove_left_over(parent)
        if not _is_first(parent):
            # What a killed one left enabled keeps processes from moving: cpu and pids take those of
            # the parent for threads of one domain.
            for controller in _read(parent, "cgroup.subtree_control").split():
                self._disable(controller)
            os.mkdir(self._supervisors)
            self._undo.append(lambda: os.rmdir(self._supervisors))
            _write(self._supervisors, "cgroup.procs", "0")
            self._undo.append(lambda: _write(parent, "cgroup.procs", "0"))
        os.mkdir(self._vms)
        self._undo.append(lambda: os.rmdir(self._vms))
        enabled = _read(parent, "cgroup.subtree_control").split()
        for controller in _controllers(self._limits):
            if controller not in enabled:
                _write(parent, "cgroup.subtree_control", f"+{controller}")
                self._undo.append(lambda name=controller: self._disable(name))  # type: ignore[misc]
        for name, value in wanted(self._limits).items():
            _write(self._vms, name, value)
        if self._limits.memory_mib is not None:
            # What the kernel may swap out would be beyond the limit.
            _try(lambda: _write(self._vms, "memory.swap.max", "0"))

    def enter(self) -> None:
        """In a child, before all else. Raises LaunchError."""
        try:
            _write(self._vms, "cgroup.procs", "0")
        except OSError as error:
            raise _error(self._vms, error) from None

    def reason(self) -> str:
        """Why the VM has ended, if a limit is why, to be put behind a sentence."""
        if self._limits.memory_mib is None:
            return ""
        try:
            text = _read(self._vms, "memory.events.local")
        except OSError:
            return ""
        events = dict(line.split() for line in text.splitlines())
        reached = int(events.get("oom", 0)) and int(events.get("oom_kill", 0))
        return " (it took more than --memory-max)" if reached else ""

    def remove(self) -> None:
        """When the VMM has ended. What can't be removed goes with the parent."""
        try:
            with _Lock(self._parent):
                while self._undo:
                    _try(self._undo.pop())
        except OSError:
            pass

    def _disable(self, controller: str) -> None:
        """Unless another VM's limits stand on it."""
        own = {os.path.basename(self._vms), os.path.basename(self._supervisors)}
        if not any(name.startswith(PREFIX) for name in set(os.listdir(self._parent)) - own):
            _write(self._parent, "cgroup.subtree_control", f"-{controller}")


class _Lock:
    """Of one cgroup, against other krunclients. Raises OSError.

    Anybody may hold it, and for good: so it is waited for no longer than what they do takes.
    """

    def __init__(self, directory: str) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> None:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(LOCK_SECONDS)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _is_first(cgroup: str) -> bool:
    """The first of all has no type, and may have processes beside others'."""
    return not os.path.exists(f"{cgroup}/cgroup.type")


def _controllers(limits: Limits) -> list[str]:
    return [name.partition(".")[0] for name in wanted(limits)]


def _decoded(path: str) -> str:
    """As proc_pid_mountinfo(5) writes it, with octal escapes."""
    parts = path.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def _remove_left_over(parent: str) -> None:
    """Those of supervisors that were killed, this process's number among them. One that still has
    processes stays.
    """
    for name in os.listdir(parent):
        number = name.removeprefix(PREFIX).partition("-")[0]
        is_over = number == str(os.getpid()) or not os.path.exists(f"/proc/{number}")
        if name.startswith(PREFIX) and number.isdigit() and is_over:
            _try(lambda name=name: os.rmdir(f"{parent}/{name}"))  # type: ignore[misc]


def _try(call: Callable[[], None]) -> None:
    try:
        call()
    except OSError:
        pass


def _error(thing: str, error: OSError) -> LaunchError:
    if error.errno == errno.EBUSY:
        return HostError(WHAT, thing, HAS_OTHERS, DELEGATE)
    if error.errno == errno.EROFS:
        return failed_call(WHAT, thing, error, "mount it for writing; containers have it read-only")
    if error.errno in (errno.EACCES, errno.EPERM):
        return failed_call(WHAT, thing, error, f"{DELEGATE}, or as root", PermissionDeniedError)
    return failed_call(WHAT, thing, error, DELEGATE)


def _read(directory: str, name: str) -> str:
    with open(f"{directory}/{name}") as file:
        return file.read()


def _write(directory: str, name: str, text: str) -> None:
    descriptor = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
