"""What one client does to the others, and to a stop, with a real Go server."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.launch import Launcher, Server
from tests.framework.roots import caddy_root

ANSWER_BYTES = 32 * 2**20  # several times what a kernel takes for a client
MAKE_ANSWER = f"/bin/busybox head -c {ANSWER_BYTES} /dev/zero >/dev/shm/large"
SECONDS = 4


@pytest.fixture
def root(scratch: Path) -> Iterator[Path]:
    directory = caddy_root(scratch / "clients", MAKE_ANSWER)
    yield directory
    shutil.rmtree(directory)


def ask(port: int) -> socket.socket:
    """A client that has asked for the large answer, and has taken nothing of it yet."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    return connection


def wait_until_it_holds_up(server: Server) -> None:
    """Until nobody else is served any more."""
    deadline = time.monotonic() + 30
    while is_served(server, 2):
        assert time.monotonic() < deadline


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
        wait_until_it_holds_up(server)
        server.get(timeout=5 * SECONDS)
        assert all(is_served(server, 10) for _ in range(5))
        assert 0 < taken(silent) < ANSWER_BYTES


def test_a_client_that_reads_slowly_gets_its_bytes_whole(
    launcher: Launcher, root: Path, port: int
) -> None:
    with launcher.serve(root, port, "--client-timeout=2"), ask(port) as slow:
        answer = b""
        while data := slow.recv(2**20):
            answer += data
            time.sleep(0.05)
        body = answer.partition(b"\r\n\r\n")[2]
        assert hashlib.sha256(body).digest() == hashlib.sha256(bytes(ANSWER_BYTES)).digest()


def test_a_stop_reaches_the_app_within_a_second_although_a_client_reads_nothing(
    any_launcher: Launcher, root: Path, port: int
) -> None:
    with any_launcher.serve(root, port, "--client-timeout=0") as server, ask(port):
        wait_until_it_holds_up(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stderr is not None
        for line in server.process.stderr:
            if b"shutting down" in line:
                break
        heard = time.monotonic() - began
        assert server.process.wait(30) == 0
        assert heard < 1.5, heard  # emulated
