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
SHOWN_PHASES = ("setup", "booting", "ready", "healthy", "unhealthy", "stopping", "failed")
PHASE_PREFIX = "krun:"  # the kernel keeps 15 characters of a process's name


def be_found(libc: Libc, process: int) -> None:
    """Have the name until the process ends. Nobody can connect to its socket."""
    sockaddr = AF_UNIX.to_bytes(2, "little") + f"\0{NAME_PREFIX}{process}".encode()
    try:
        descriptor = libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
        libc.bind(descriptor, sockaddr, len(sockaddr))
    except OSError:
        pass  # somebody else has taken that name: a VM that is not found runs all the same


def phase_of(name: str) -> str | None:
    """What a process's name says, None for one that is no supervisor's: anybody can take any."""
    phase = name.removeprefix(PHASE_PREFIX)
    return phase if name.startswith(PHASE_PREFIX) and phase in SHOWN_PHASES else None


def is_supervisor(process: str) -> bool:
    """Whether a process of this number runs, and is one."""
    try:
        with open(f"/proc/{int(process)}/comm") as file:
            return phase_of(file.read().rstrip("\n")) is not None
    except (OSError, ValueError):
        return False


def show_phase(libc: Libc, phase: str) -> None:
    """Name this process after it. Raises OSError."""
    name = ctypes.create_string_buffer(f"{PHASE_PREFIX}{phase}".encode())
    libc.prctl(PR_SET_NAME, ctypes.addressof(name), 0, 0, 0)
