"""ELF files that are just enough for a check of their headers."""

from __future__ import annotations

import struct

from target import ARCHITECTURE


def elf(
    machine: int = ARCHITECTURE.elf_machine,
    interpreter: str | None = None,
    bits: int = 2,
    order: int = 1,
) -> bytes:
    """An ELF header and, where an interpreter is named, the one program header that says so."""
    path = (interpreter or "").encode() + b"\0"
    header = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    kind = 3 if interpreter else 1
    header += struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, len(path), len(path), 1)
    return header + path
