"""Internet addresses with their ports, as text and as the kernel's struct sockaddr."""

from __future__ import annotations

import ctypes

from krunclient.bindings.libc import AF_INET, AF_INET6
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
SIZES = {AF_INET: 4, AF_INET6: 16}


class Endpoint(Record):
    """An IP address, in network byte order, and a TCP port.

    An IPv4 address that is mapped into IPv6 is kept as IPv4: the kernel treats them alike.
    """

    packed: bytes
    port: int

    @property
    def family(self) -> int:
        return AF_INET if len(self.packed) == SIZES[AF_INET] else AF_INET6

    def text(self) -> str:
        """As users write it: `127.0.0.1:80`, `[::1]:80`."""
        if self.family == AF_INET:
            return f"{'.'.join(str(byte) for byte in self.packed)}:{self.port}"
        groups = (self.packed[start : start + 2].hex() for start in range(0, 16, 2))
        return f"[{':'.join(f'{int(group, 16):x}' for group in groups)}]:{self.port}"

    def sockaddr(self, family: int) -> bytes:
        """struct sockaddr_in or sockaddr_in6 for a socket of this family, ip(7), ipv6(7).

        Raises ValueError for an IPv6 address and an IPv4 socket.
        """
        head = family.to_bytes(2, "little") + self.port.to_bytes(2, "big")
        if family == AF_INET6:
            mapped = V4_MAPPED_PREFIX + self.packed if self.family == AF_INET else self.packed
            return head + bytes(4) + mapped + bytes(4)
        if self.family == AF_INET6:
            raise ValueError("an IPv4 socket can't have an IPv6 address")
        return head + self.packed + bytes(8)


def parse_ip(libc: Libc, text: str) -> bytes | None:
    """The packed form of an IPv4 or IPv6 literal, None for a text that is none."""
    try:
        encoded = text.encode("ascii")
    except UnicodeEncodeError:
        return None
    for family, size in SIZES.items():
        buffer = ctypes.create_string_buffer(size)
        if b"\0" not in encoded and libc.inet_pton(family, encoded, buffer) == 1:
            return _unmapped(buffer.raw)
    return None


def from_sockaddr(data: bytes) -> Endpoint | None:
    """The endpoint in the bytes of a struct sockaddr, None for other families and short ones."""
    family, port = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "big")
    if family == AF_INET and len(data) >= 8:
        return Endpoint(packed=data[4:8], port=port)
    if family == AF_INET6 and len(data) >= 24:
        return Endpoint(packed=_unmapped(data[8:24]), port=port)
    return None


def _unmapped(packed: bytes) -> bytes:
    return packed[12:] if packed.startswith(V4_MAPPED_PREFIX) and len(packed) == 16 else packed
