"""What one client does to the others, and to a stop, with a real Go server."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.framework.clients import (
    SMALL_COST,
    ask,
    ask_and_reset,
    cost_others,
    reading,
    requests,
    side_by_side,
)
from tests.framework.launch import Launcher, Server
from tests.framework.processes import children_of, status_of
from tests.framework.roots import caddy_root

ANSWER_BYTES = 128 * 2**20  # several times what a kernel takes for a client, with room as well
SMALLER_BYTES = 8 * 2**20  # twice what it takes without
MAKE_ANSWERS = "; ".join(
    f"/bin/busybox head -c {size} /dev/zero >/dev/shm/{name}"
    for name, size in (("large", ANSWER_BYTES), ("smaller", SMALLER_BYTES))
)
SECONDS = 4
KEPT_SECONDS, LEFT_SECONDS = 6, 60  # libkrun keeps a connection's socket for five after its end
Held = dict[str, tuple[int, int]]
HEARD_BY_SLOWNESS = 0.2  # seconds
CONNECTIONS_AND_RESETS = (300, 200)


@pytest.fixture
def root(scratch: Path) -> Iterator[Path]:
    directory = caddy_root(scratch / "clients", MAKE_ANSWERS)
    yield directory
    shutil.rmtree(directory)


def wait_until_it_holds_up(server: Server) -> None:
    """Until nobody else is served any more."""
    deadline = time.monotonic() + 30
    while is_served(server, 2):
        assert time.monotonic() < deadline


def wait_until_it_is_gone(client: socket.socket) -> None:
    """Until the kernel has no connection to it any more, which it may not hear of."""
    server, own = client.getpeername()[1], client.getsockname()[1]
    ends = re.compile(rf":{server:04X} (0{{16}}FFFF0000)?0100007F:{own:04X} ")
    deadline = time.monotonic() + 60
    while any(ends.search(Path(f"/proc/net/{table}").read_text()) for table in ("tcp", "tcp6")):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def taken(connection: socket.socket) -> int:
    """How many bytes come, to the end of the connection, however that ends."""
    received = 0
    try:
        while data := connection.recv(2**20):
            received += len(data)
    except ConnectionError:
        pass
    return received


def answer(connection: socket.socket, pause: float = 0) -> bytes:
    """The body of an answer that is taken to its end, with a pause after each part."""
    whole = b""
    while data := connection.recv(2**20):
        whole += data
        time.sleep(pause)
    return whole.partition(b"\r\n\r\n")[2]


def is_served(server: Server, within: float) -> bool:
    try:
        return server.get(timeout=within) == b"hello from go"
    except OSError:
        return False


def test_a_client_that_reads_nothing_is_gone_after_the_timeout_and_others_are_served(
    any_launcher: Launcher, root: Path, port: int
) -> None:
    timeout = f"--client-timeout={SECONDS}"
    with any_launcher.serve(root, port, timeout) as server, ask(port, "/large") as silent:
        if any_launcher.user is not None:  # who can't let the kernel take more meanwhile
            wait_until_it_holds_up(server)
        server.get(timeout=5 * SECONDS)
        wait_until_it_is_gone(silent)
        assert all(is_served(server, 10) for _ in range(5))
        assert 0 < taken(silent) < ANSWER_BYTES


def test_a_client_that_reads_slowly_gets_its_bytes_whole(
    launcher: Launcher, root: Path, port: int
) -> None:
    with launcher.serve(root, port, "--client-timeout=2"), ask(port, "/smaller") as slow:
        assert digest(answer(slow, 0.05)) == digest(bytes(SMALLER_BYTES))


def test_by_root_two_clients_that_do_not_read_cost_others_nothing_once_they_have_room(
    launcher: Launcher, root: Path, port: int
) -> None:
    with launcher.serve(root, port) as server:

        @contextmanager
        def others() -> Iterator[None]:
            with ask(port, "/smaller") as dead, reading(port, "/smaller", 20_000):
                for _ in range(2):
                    server.get(timeout=60)
                yield
                assert digest(answer(dead)) == digest(bytes(SMALLER_BYTES))

        assert cost_others(port, others, again=True) < SMALL_COST


def test_a_stop_reaches_the_app_within_a_second_although_a_client_reads_nothing(
    any_launcher: Launcher, root: Path, port: int, slowness: float
) -> None:
    with any_launcher.serve(root, port, "--client-timeout=0") as server, ask(port, "/large"):
        wait_until_it_holds_up(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stderr is not None
        for line in server.process.stderr:
            if b"shutting down" in line:
                break
        heard = time.monotonic() - began
        assert server.process.wait(30) == 0
        assert heard < max(1, HEARD_BY_SLOWNESS * slowness), heard


def held(server: Server) -> Held:
    """How many descriptors and how many MB of memory each process of a VM holds."""
    supervisor = Path("/proc", str(server.process.pid))
    return {
        f"{process.name} {(process / 'comm').read_text().strip()}": (
            len(list((process / "fd").iterdir())),
            int(status_of(process)["RssAnon"].split()[0]) // 1000,
        )
        for process in (supervisor, *children_of(server.process.pid))
    }


def grown(before: Held, after: Held) -> Held:
    """Those that hold more than a little more than before."""
    return {
        name: (descriptors, megabytes)
        for name, (descriptors, megabytes) in after.items()
        if descriptors > before[name][0] + 8 or megabytes > before[name][1] + 8
    }


def connections(port: int) -> int:
    """Of this port on the host, those that only wait for their end left out."""
    is_one = re.compile(rf":{port:04X} [0-9A-F]+:[0-9A-F]{{4}} (?!06|0A)")
    tables = (Path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6"))
    return sum(len(is_one.findall(table)) for table in tables)


def test_hundreds_of_connections_and_resets_leave_nothing(
    any_network: Launcher, root: Path, port: int
) -> None:
    with any_network.serve(root, port) as server:

        def load(connections: int, resets: int) -> None:
            side_by_side(connections, 8, lambda: requests(port, 1, 60))
            side_by_side(resets, 8, lambda: ask_and_reset(port, "/smaller"))
            # libkrun loses a connection now and then.
            assert any(is_served(server, 20) for _ in range(3))

        load(100, 100)
        time.sleep(KEPT_SECONDS)
        before = held(server)
        load(*CONNECTIONS_AND_RESETS)
        deadline = time.monotonic() + LEFT_SECONDS
        while (left := connections(port) or grown(before, held(server))) and (
            time.monotonic() < deadline
        ):
            time.sleep(1)
        assert not left, (before, left)
