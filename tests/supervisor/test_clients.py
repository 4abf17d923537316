"""A client that takes nothing holds the VMM up for a bounded time; a stop does not wait for it.

The VMM sends as libkrun does: on a socket that blocks, on the one thread that does all else.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from krunclient.supervisor.stalls import MAX_WIDE_BYTES, WIDE_BYTES
from tests.framework import fake_vmm
from tests.framework.fake_vmm import APP_STARTED, IGNORES_SIGINT, LISTENING

PORT = 30781
SENT = 16 << 20  # more than a kernel takes for a client
# It sends to each client in turn, and a byte more when that has ended somehow. An interrupted send
# goes on, as libkrun's does: it is another thread that takes its SIGINT.
SENDS = f"""
    static char bytes[1 << 16];
    for (;;) {{
        struct pollfd one = {{.fd = socket_, .events = POLLIN}};
        if (poll(&one, 1, -1) < 1) continue;
        int client = accept(socket_, 0, 0);
        long left = {SENT};
        while (left > 0) {{
            long sent = send(client, bytes, sizeof(bytes), MSG_NOSIGNAL);
            if (sent <= 0) break;
            left -= sent;
        }}
        close(client);
        if (left > 0) dprintf(6, "not taken\\n");
    }}
"""


@contextmanager
def sending(
    tmp_path: Path, *options: str, vmm: str = SENDS, may_widen: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    launcher, arguments = fake_vmm.prepare(tmp_path, IGNORES_SIGINT, APP_STARTED, LISTENING, vmm)
    if not may_widen and os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-net_admin", *launcher.command]
        launcher = replace(launcher, command=command)
    process = launcher.start(*arguments, str(PORT), "--log-level=info", *options)
    with fake_vmm.open_port(process):
        yield process


def client() -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", PORT))
    return connection


def taken(connection: socket.socket, pause: float = 0) -> bytes:
    """A hash of all that comes."""
    found = hashlib.sha256()
    while data := connection.recv(1 << 20):
        found.update(data)
        time.sleep(pause)
    return found.digest()


def first_byte(timeout: float) -> bool:
    with client() as connection:
        connection.settimeout(timeout)
        try:
            return connection.recv(1) == b"\0"
        except TimeoutError:
            return False


def test_a_client_that_takes_nothing_is_ended_after_the_timeout_and_others_are_served(
    tmp_path: Path,
) -> None:
    with sending(tmp_path, "--client-timeout=1", may_widen=False) as process, client():
        assert process.stderr is not None
        began = time.monotonic()
        assert process.stderr.readline() == b"not taken\n"
        assert 0.5 < time.monotonic() - began < 4
        assert first_byte(1)


def test_without_a_timeout_it_holds_up_all_others(tmp_path: Path) -> None:
    with sending(tmp_path, "--client-timeout=0", may_widen=False), client():
        assert not first_byte(3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a socket more room")
def test_by_root_it_holds_up_nobody_for_long_and_nothing_is_lost(tmp_path: Path) -> None:
    with sending(tmp_path, "--client-timeout=0"), client() as paused:
        time.sleep(0.2)
        assert first_byte(3)
        assert taken(paused) == hashlib.sha256(bytes(SENT)).digest()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a socket more room")
def test_so_many_clients_have_room_at_a_time_and_others_after_them(tmp_path: Path) -> None:
    with sending(tmp_path, "--client-timeout=0"):
        with ExitStack() as stack:
            for _ in range(MAX_WIDE_BYTES // WIDE_BYTES):
                stack.enter_context(client())
            assert first_byte(10)
            stack.enter_context(client())
            assert not first_byte(3)
        with client():
            assert first_byte(3)


def test_a_client_that_takes_slowly_gets_all(tmp_path: Path) -> None:
    with sending(tmp_path, "--client-timeout=0.3"), client() as slow:
        began = time.monotonic()
        assert taken(slow, 0.01) == hashlib.sha256(bytes(SENT)).digest()
        assert time.monotonic() - began > 0.6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_a_send_that_is_held_up(tmp_path: Path, number: int) -> None:
    with sending(tmp_path, "--client-timeout=0", may_widen=False) as process, client():
        assert process.stderr is not None
        time.sleep(0.5)
        process.send_signal(number)
        began = time.monotonic()
        while b"not taken" not in process.stderr.readline():
            assert process.poll() is None
        assert time.monotonic() - began < 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a socket more room")
def test_a_stop_by_root_lets_a_send_that_is_held_up_go_on_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    with sending(tmp_path, "--client-timeout=0") as process, client() as paused:
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert first_byte(1)  # the thread is free
        assert taken(paused) == hashlib.sha256(bytes(SENT)).digest()


def test_a_stop_ends_no_send_that_goes_on(tmp_path: Path) -> None:
    with sending(tmp_path, "--client-timeout=0") as process, client() as slow:
        process.send_signal(signal.SIGTERM)
        assert taken(slow, 0.01) == hashlib.sha256(bytes(SENT)).digest()


SHOWS_OPTIONS = """
    struct pollfd one = {.fd = socket_, .events = POLLIN};
    poll(&one, 1, -1);
    int client = accept(socket_, 0, 0), keep, idle, timeout;
    socklen_t size = sizeof(int);
    getsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &keep, &size);
    getsockopt(client, IPPROTO_TCP, TCP_KEEPIDLE, &idle, &size);
    getsockopt(client, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, &size);
    dprintf(6, "%d %d %d\\n", keep, idle, timeout);
"""


@pytest.mark.parametrize(
    ("options", "milliseconds"),
    [((), 20000), (("--client-timeout=0.5",), 500), (("--client-timeout=0",), 0)],
)
def test_each_clients_socket_has_the_timeout_and_is_probed_when_it_is_silent(
    tmp_path: Path, options: tuple[str, ...], milliseconds: int
) -> None:
    with sending(tmp_path, *options, vmm=SHOWS_OPTIONS) as process, client():
        assert process.stderr is not None
        assert process.stderr.readline().decode() == f"1 60 {milliseconds}\n"
