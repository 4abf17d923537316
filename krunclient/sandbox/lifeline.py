"""A thread that does nothing but die with the supervisor, and take the VMM with it.

The signal of a parent's death, PR_SET_PDEATHSIG of prctl(2), belongs to a thread. Its own calls can
take it away: prctl, which the VMM's filter refuses, and every change of user, which the virtio-fs
server has to make for the guest's users. So a thread of its own has it, under a filter by which
any call but waiting ends the process: whoever takes the VMM over can't make it do either.
"""

from __future__ import annotations

import _thread
import errno
import os

from krunclient.bindings.libc import PR_SET_PDEATHSIG, SIG_BLOCK, SIGKILL, SignalSet
from krunclient.sandbox import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc


def start(libc: Libc, machine: str, supervisor: int) -> None:
    """Start the thread. Raises OSError. Needs no_new_privs."""
    waits = _thread.allocate_lock()
    waits.acquire()
    failures: list[OSError] = []

    def wait() -> None:
        try:
            libc.sigprocmask(SIG_BLOCK, SignalSet.full(), None)
            libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
            if os.getppid() != supervisor:
                os._exit(1)  # it died before the line above
            seccomp.install_unsupervised(libc, seccomp.assemble_waiting(machine))
        except OSError as error:
            failures.append(error)
        waits.release()
        while not failures:
            try:
                libc.pause()
            except OSError:
                pass  # no signal gets here, but for those that nobody can block

    try:
        _thread.start_new_thread(wait, ())
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread can be started") from None
    waits.acquire()
    if failures:
        raise failures[0]
