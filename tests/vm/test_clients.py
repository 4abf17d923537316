"""What one client does to the others, and to a stop, with a real Go server."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.launch import Launcher, Server
from tests.framework.roots import caddy_root

ANSWER_BYTES = 8 * 2**20
MAKE_ANSWER = f"/bin/busybox head -c {ANSWER_BYTES} /dev/zero >/dev/shm/answer"
SECONDS = 4


@pytest.fixture
def root(scratch: Path) -> Iterator[Path]:
    directory = caddy_root(scratch / "clients", MAKE_ANSWER)
    yield directory
    shutil.rmtree(directory)


def ask(port: int) -> socket.socket:
    """A client that has asked for the large answer, and has taken nothing of it yet."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.sendall(b"GET /large/answer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    return connection


def taken(connection: socket.socket) -> int:
    """How many bytes come, to the end of the connection, however that ends."""
    received = 0
    try:
        while data := connection.recv(2**20):
            received += len(data)
    except ConnectionError:
        pass
    return received


def is_served(server: Server, within: float) -> bool:
    try:
        return server.get(timeout=within) == b"hello from go"
    except OSError:
        return False


def test_a_client_that_reads_nothing_is_gone_after_the_timeout_and_others_are_served(
    any_launcher: Launcher, root: Path, port: int
) -> None:
    timeout = f"--client-timeout={SECONDS}"
    with any_launcher.serve(root, port, timeout) as server, ask(port) as silent:
        threading.Event().wait(2)
        began = time.monotonic()
        server.get(timeout=60)
        assert time.monotonic() - began < 3 * SECONDS
        assert all(is_served(server, 10) for _ in range(5))
        assert taken(silent) < ANSWER_BYTES
