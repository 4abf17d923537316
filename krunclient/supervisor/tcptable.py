"""The TCP sockets of this host, by proc_net_tcp.rst of the kernel."""

from __future__ import annotations

from krunclient.bindings.libc import AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LISTEN, TIME_WAIT = b"0A", b"06"  # <net/tcp_states.h>


def sockets() -> Iterator[tuple[bytes, bytes, bytes]]:
    """Of each its own end, its peer's, as `end` writes them, and its state."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, "rb") as file:
                for line in file:
                    _, local, peer, state, *_ = line.split(None, 4)
                    yield local, peer, state
        except FileNotFoundError:
            continue


def end(sockaddr: bytes) -> bytes:
    """An address and a port as the tables have them: each word as the processor reads it."""
    port = int.from_bytes(sockaddr[2:4], "big")
    is_ipv6 = int.from_bytes(sockaddr[:2], "little") == AF_INET6
    address = sockaddr[8:24] if is_ipv6 else sockaddr[4:8]
    words = (address[start : start + 4] for start in range(0, len(address), 4))
    return b"%b:%04X" % (b"".join(b"%08X" % int.from_bytes(word, "little") for word in words), port)
