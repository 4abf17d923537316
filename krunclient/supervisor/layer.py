"""How much the guest has written to its layer in memory, which is lost with the VM."""

from __future__ import annotations

import os

from krunclient.sandbox.mounts import GUEST


class MemoryLayer:
    """The layer of a VMM that is behind its walls and has no guest yet."""

    def __init__(self, vmm: int) -> None:
        """Raises OSError."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._root = os.open(f"/proc/{vmm}/root/{GUEST}", flags)

    def written_mib(self) -> float:
        """In MiB, to hundredths and rounded up. Also when the VMM has ended. Raises OSError."""
        found = os.fstatvfs(self._root)  # an overlay's is that of its upper layer
        hundredths = -(-(found.f_blocks - found.f_bfree) * found.f_frsize * 100 // 2**20)
        return hundredths / 100
