"""Parent-death signal, dumpable flag and limits of a process, in the supervisor and in the VMM."""

from __future__ import annotations

import os

from krunclient.bindings.libc import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    RLIMITS,
    SIGKILL,
    ResourceLimit,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

# A core of one byte is written nowhere: not to a file, which needs a page, and not to a pipe,
# for which the kernel takes this very value as the sign to leave it (fs/coredump.c).
NO_CORE = 1


def die_with(libc: Libc, parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends, prctl(2).

    `parent` is the process id that the parent had: one that is gone by now kills at once. A change
    of user, and a program that is executed with other rights, undo it. Raises OSError.
    """
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), SIGKILL)


def set_dumpable(libc: Libc, dumpable: bool) -> None:
    """Open or close this process to other processes of its user: ptrace(2), /proc/PID, and the
    seccomp listener's supervisor. A change of user closes it. Raises OSError.
    """
    libc.prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def forbid_core_dumps(libc: Libc) -> None:
    """What is in memory, secrets among it, goes into no core dump. Raises OSError."""
    before = ResourceLimit()
    libc.getrlimit(RLIMITS["RLIMIT_CORE"], before)
    set_limit(libc, "RLIMIT_CORE", min(NO_CORE, before.hard))
    if before.hard < NO_CORE:
        # The kernel dumps to a pipe all the same: then a dump that holds no memory, core(5).
        with open("/proc/self/coredump_filter", "wb") as file:
            file.write(b"0")


def set_limit(libc: Libc, name: str, value: int) -> None:
    """Set both the soft and the hard limit, setrlimit(2). Raises OSError."""
    libc.setrlimit(RLIMITS[name], ResourceLimit(value, value))
