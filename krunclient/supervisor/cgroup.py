"""--cpu-quota, --memory-max and --pids-max: a cgroup of the VM's own, cgroups(7) and cgroup-v2.rst.

It is made inside the cgroup that krunclient was started in. A cgroup that has processes can't hand
controllers down, unless it is the first of all: so krunclient goes into one beside the VM's.

    the cgroup that krunclient was started in        has no process any more
    ├── krunclient-PID                               the VMM, and passt: within the limits
    └── krunclient-PID-supervisor                    krunclient itself
"""

from __future__ import annotations

import errno
import os

from krunclient.errors import HostError, LaunchError, PermissionDeniedError, failed_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.model import Limits

PREFIX = "krunclient-"
PERIOD = 100000  # cpu.max counts microseconds in so many
WHAT = "limits can't be set"
DELEGATE = "start it in a cgroup of its own, by systemd-run --scope -p Delegate=yes say"


def find() -> str:
    """The directory of the cgroup that this process is in. Raises HostError, OSError."""
    with open("/proc/self/cgroup") as file:
        paths = [line.partition("::")[2].rstrip("\n") for line in file if line.startswith("0::")]
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file if " - cgroup2 " in line]
    if not paths or not mounts:
        remedy = "mount cgroup2 at /sys/fs/cgroup, which systemd does by itself"
        raise HostError(WHAT, "cgroup v2", "it is not mounted", remedy)
    top, mount_point = mounts[0][3:5]
    # Where only a part of the tree is mounted, the path begins with that.
    path = paths[0].removeprefix(top if top != "/" else "")
    return mount_point + path.rstrip("/")


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


def check(parent: str, limits: Limits) -> None:
    """Raises HostError for a controller that this cgroup does not have, OSError."""
    has = _read(parent, "cgroup.controllers").split()
    for controller in _controllers(limits):
        if controller not in has:
            why = f"it has no controller {controller}"
            raise HostError(WHAT, parent, why, f"{DELEGATE}; see {parent}/cgroup.controllers")


class Cgroup:
    """The VM's, made with its limits. This process is in the one beside it from then on."""

    def __init__(self, limits: Limits) -> None:
        """Raises LaunchError."""
        parent = find()
        number = os.getpid()
        self._parent = parent
        self._own = f"{parent}/{PREFIX}{number}"
        self._supervisors = f"{parent}/{PREFIX}{number}-supervisor"
        # The first of all has no type.
        self._moves = os.path.exists(f"{parent}/cgroup.type")
        try:
            check(parent, limits)
            _remove_left_over(parent)
            os.mkdir(self._own)
            if self._moves:
                os.mkdir(self._supervisors)
                self.leave()
            enable = " ".join(f"+{controller}" for controller in _controllers(limits))
            _write(parent, "cgroup.subtree_control", enable)
            for name, value in wanted(limits).items():
                _write(self._own, name, value)
        except OSError as error:
            self.remove()
            raise _error(parent, error) from None
        except LaunchError:
            self.remove()
            raise

    def enter(self) -> None:
        """Go into it, to fork children there. Raises LaunchError."""
        self._move(self._own)

    def leave(self) -> None:
        """Raises LaunchError."""
        self._move(self._supervisors if self._moves else self._parent)

    def reason(self) -> str:
        """Why the VM has ended, if a limit is why, to be put behind a sentence."""
        try:
            events = dict(line.split() for line in _read(self._own, "memory.events").splitlines())
        except OSError:
            return ""  # memory is not limited
        return " (it took more than --memory-max)" if int(events["oom_kill"]) else ""

    def remove(self) -> None:
        """When the VMM has ended. What can't be removed goes with the parent."""
        _try(os.rmdir, self._own)
        if self._moves:
            _try(_write, self._parent, "cgroup.subtree_control", "-cpu -memory -pids")
            _try(_write, self._parent, "cgroup.procs", "0")
            _try(os.rmdir, self._supervisors)

    def _move(self, to: str) -> None:
        try:
            _write(to, "cgroup.procs", "0")
        except OSError as error:
            raise _error(to, error) from None


def _controllers(limits: Limits) -> list[str]:
    return [name.partition(".")[0] for name in wanted(limits)]


def _remove_left_over(parent: str) -> None:
    """Those of supervisors that were killed, this process's number among them. One that still has
    processes stays.
    """
    for name in os.listdir(parent):
        number = name.removeprefix(PREFIX).partition("-")[0]
        is_over = number == str(os.getpid()) or not os.path.exists(f"/proc/{number}")
        if name.startswith(PREFIX) and number.isdigit() and is_over:
            _try(os.rmdir, f"{parent}/{name}")


def _try(call: Callable[..., object], *arguments: str) -> None:
    try:
        call(*arguments)
    except OSError:
        pass


def _error(thing: str, error: OSError) -> LaunchError:
    if error.errno == errno.EBUSY:
        return HostError(WHAT, thing, "other processes are in that cgroup", DELEGATE)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
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
