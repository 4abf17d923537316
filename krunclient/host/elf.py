"""ELF files as far as krunclient reads them, elf(5): 64 bits, little-endian."""

from __future__ import annotations

import os

from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\x7fELF"
CLASS_64_DATA_LITTLE = b"\x02\x01"
HEADER_BYTES = 64
EXECUTABLE_TYPES = (2, 3)  # ET_EXEC, ET_DYN
# The kernel's load_elf_phdrs refuses other sizes and more headers.
PROGRAM_HEADER_BYTES = 56
MAX_PROGRAM_HEADERS = 65536 // PROGRAM_HEADER_BYTES
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_STRTAB, DT_STRSZ = 5, 10
DYNAMIC_ENTRY_BYTES = 16
MAX_PATH_BYTES = 4096
MAX_TABLE_BYTES = 2**24  # hundred times what a libkrun has
MAX_OFFSET = 2**62  # off_t has a sign


class Segment(Record):
    """What a program header says, in bytes of the file but for `address`."""

    kind: int
    offset: int
    address: int
    size: int


class Elf:
    """An ELF file that is open for reading. What lies outside of it reads as nothing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._header = os.pread(descriptor, HEADER_BYTES, 0)

    def is_for(self, elf_machine: int) -> bool:
        """Whether it is made for this architecture."""
        expected = MAGIC + CLASS_64_DATA_LITTLE
        return self._header.startswith(expected) and _number(self._header, 18, 2) == elf_machine

    def is_whole_program(self) -> bool:
        """Whether the kernel would find an executable with all of its program headers."""
        header = self._header
        end = _number(header, 32, 8) + PROGRAM_HEADER_BYTES * _number(header, 56, 2)
        return (
            _number(header, 16, 2) in EXECUTABLE_TYPES
            and _number(header, 54, 2) == PROGRAM_HEADER_BYTES
            and 0 < _number(header, 56, 2) <= MAX_PROGRAM_HEADERS
            and end <= os.fstat(self._descriptor).st_size
        )

    def has_whole_segments(self) -> bool:
        """Whether the file has all that is to be loaded."""
        size = os.fstat(self._descriptor).st_size
        return all(one.offset + one.size <= size for one in self._segments(PT_LOAD))

    def interpreter(self) -> str | None:
        """The path in PT_INTERP: the dynamic loader, None for a static program."""
        for segment in self._segments(PT_INTERP):
            path = self._read(segment.offset, min(segment.size, MAX_PATH_BYTES))
            return os.fsdecode(path.split(b"\0")[0])
        return None

    def dynamic_strings(self) -> bytes:
        """The table that holds the name of each dynamic symbol, NUL-terminated."""
        entries = {}
        for segment in self._segments(PT_DYNAMIC):
            table = self._read(segment.offset, min(segment.size, MAX_TABLE_BYTES))
            for start in range(0, len(table), DYNAMIC_ENTRY_BYTES):
                entries[_number(table, start, 8)] = _number(table, start + 8, 8)
        address, size = entries.get(DT_STRTAB, 0), entries.get(DT_STRSZ, 0)
        for segment in self._segments(PT_LOAD):
            inside = address - segment.address
            if 0 <= inside < segment.size:
                return self._read(segment.offset + inside, min(size, MAX_TABLE_BYTES))
        return b""

    def _segments(self, kind: int) -> Iterator[Segment]:
        size = PROGRAM_HEADER_BYTES * _number(self._header, 56, 2)
        headers = self._read(_number(self._header, 32, 8), size)
        for start in range(0, len(headers), PROGRAM_HEADER_BYTES):
            if _number(headers, start, 4) == kind:
                offset, address = _number(headers, start + 8, 8), _number(headers, start + 16, 8)
                size = _number(headers, start + 32, 8)
                yield Segment(kind=kind, offset=offset, address=address, size=size)

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, min(offset, MAX_OFFSET))


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")
