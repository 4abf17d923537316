"""A thread that does nothing but die with the supervisor, and take the VMM with it.

The signal of a parent's death, PR_SET_PDEATHSIG of prctl(2), belongs to a thread. Its own calls can
take it away: prctl, which the VMM's filter refuses, and every change of user, which the virtio-fs
server has to make for the guest's users. So a thread of its own has it, under a filter by which
any call but waiting ends the process: a guest that takes the VMM over can't make it do either.
"""

from __future__ import annotations

import _thread
import errno

from krunclient.bindings.libc import SIG_BLOCK, SignalSet
from krunclient.sandbox import process, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc


def start(libc: Libc, architecture: Architecture, supervisor: int) -> None:
    """Start the thread. Raises OSError. Needs no_new_privs."""
    waits = _thread.allocate_lock()
    waits.acquire()
    failures: list[OSError] = []
    pause = libc.pause  # looked up here: under the filter, the dynamic loader may do nothing

    def wait() -> None:
        try:
            libc.sigprocmask(SIG_BLOCK, SignalSet.full(), None)
            process.die_with(libc, supervisor)
            seccomp.install_unsupervised(libc, seccomp.assemble_waiting(architecture))
        except OSError as error:
            failures.append(error)
        waits.release()
        while not failures:
            try:
                pause()
            except OSError:
                pass  # no signal gets here, but for those that nobody can block

    try:
        _thread.start_new_thread(wait, ())
    except RuntimeError:
        raise OSError(errno.EAGAIN, "pthread_create: no thread can be started") from None
    waits.acquire()
    if failures:
        raise failures[0]
