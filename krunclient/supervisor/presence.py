"""How others find a running VM, from what the kernel itself knows: nothing of it can go stale.

A name in the abstract UNIX namespace, unix(7), has the supervisor's process id: that namespace
belongs to the network namespace, as ports do. The supervisor's own name, which ps(1) shows, has the
phase that the VM is in. Both end with the process, however it ends.
"""

from __future__ import annotations

import ctypes

from krunclient.bindings.libc import AF_UNIX, PR_SET_NAME, SOCK_CLOEXEC, SOCK_STREAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

NAME_PREFIX = "krunclient-vm-"
PHASE_PREFIX = "krun:"  # the kernel keeps 15 characters of a process's name


def be_found(libc: Libc, process: int) -> None:
    """Have the name until the process ends. Nobody can connect to its socket."""
    sockaddr = AF_UNIX.to_bytes(2, "little") + f"\0{NAME_PREFIX}{process}".encode()
    try:
        descriptor = libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
        libc.bind(descriptor, sockaddr, len(sockaddr))
    except OSError:
        pass  # somebody else has taken that name: a VM that is not found runs all the same


def show_phase(libc: Libc, phase: str) -> None:
    """Name this process after it. Raises OSError."""
    name = ctypes.create_string_buffer(f"{PHASE_PREFIX}{phase}".encode())
    libc.prctl(PR_SET_NAME, ctypes.addressof(name), 0, 0, 0)
