"""Servers on the host that a guest may or may not reach, and what the host listens on."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>


class Echo:
    """Answers whatever comes with `pong`, by TCP and by UDP, and counts who came."""

    def __init__(self, address: str, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.visits = 0
        self._tcp = socket.socket(family, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((address, port))
        self._tcp.listen()
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((address, self.port))

    def __enter__(self) -> Echo:
        threading.Thread(target=self._serve_tcp, daemon=True).start()
        threading.Thread(target=self._serve_udp, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        for one in (self._tcp, self._udp):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            self.visits += 1
            # A server that closes without having read what came resets the connection.
            connection.settimeout(5)
            with contextlib.suppress(TimeoutError, ConnectionError):
                connection.recv(100)
                connection.sendall(b"pong\n")
            connection.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                _, peer = self._udp.recvfrom(100)
                if peer is None:  # shut down
                    return
                self.visits += 1
                self._udp.sendto(b"pong", peer)
            except OSError:
                return


class Frames:
    """All that any interface of the host carries while the context lasts."""

    def __enter__(self) -> Frames:
        every_protocol = socket.htons(3)  # ETH_P_ALL of <linux/if_ether.h>
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, every_protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**25)
        self._socket.setblocking(False)
        self._seen: list[bytes] = []
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def have(self, data: bytes) -> bool:
        while True:
            try:
                self._seen.append(self._socket.recv(65536))
            except BlockingIOError:
                return any(data in frame for frame in self._seen)


def sockets() -> set[str]:
    """What the host listens on, and its unconnected UDP and raw sockets: kind, address:port."""
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path("/proc/net", kind).read_text().splitlines()[1:]:
            fields = line.split()
            listening = fields[3] == "0A" if kind.startswith("tcp") else True
            if listening:
                found.add(f"{kind} {fields[1]}")
    return found
