"""The guest's network by a card and passt: the same promises as by libkrun's own way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.framework.clients import SMALL_COST, ask, cost_others, reading
from tests.framework.launch import Launcher, Server
from tests.framework.processes import children_of, is_gone_within
from tests.framework.roots import GRACEFUL_APP, HTTPD, STATUS_WHEN_ASKED, caddy_root
from tests.framework.servers import Echo, Frames, sockets

NewRoot = Callable[..., Path]
STOP_BY_SLOWNESS = 0.3  # seconds
MAKE_ANSWER = f"/bin/busybox head -c {8 * 2**20} /dev/zero >/dev/shm/smaller"


@pytest.fixture
def root(scratch: Path) -> Iterator[Path]:
    directory = caddy_root(scratch / "behind-passt", MAKE_ANSWER, grace="1s")
    yield directory
    shutil.rmtree(directory)


def test_a_guest_reaches_what_is_allowed_and_nothing_else(
    behind_passt: Launcher, new_root: NewRoot, port: int, neighbour: Server
) -> None:
    with (
        Echo("127.0.0.1") as allowed,
        Echo("127.0.0.1") as other,
        Echo("::1") as allowed_six,
        Echo("127.0.0.2") as elsewhere,
        Echo("127.0.0.1", 53) as resolver,
        Frames() as frames,
    ):
        stand_in, stand_in_six = "192.0.2.16", "192.0.2.17"
        attempts = {
            f"reach {stand_in} {allowed.port}": "ok",
            f"reach {stand_in_six} {allowed_six.port}": "ok",
            f"reach 127.0.0.1 {allowed.port}": "ECONNREFUSED",  # the guest's own
            f"reach {stand_in_six} {allowed.port}": "refused",
            f"reach {stand_in} {other.port}": "refused",
            f"reach {stand_in} {neighbour.port}": "refused",
            f"reach {stand_in} 53": "refused",
            f"reach 198.18.0.1 {other.port}": "refused",  # where clients come from
            f"reach 192.0.2.1 {other.port}": "refused",  # the gateway
            f"reach 192.0.2.254 {other.port}": "refused",  # where news go
            f"reach 127.0.0.2 {elsewhere.port}": "ECONNREFUSED",
            "reach 169.254.169.254 80": "ENETUNREACH",
            "reach 10.0.0.1 53": "ENETUNREACH",
            "reach 2001:db8::1 80": "ENETUNREACH",
            "udp 10.0.0.1 53": "ENETUNREACH",
        }
        lines = [f"probe {attempt}" for attempt in attempts]
        lines += ["nslookup example.test 127.0.0.1 >/dev/null && echo dns: ok"]
        lines += [f"probe udp {stand_in} {allowed.port}", f"probe udp {stand_in} 53"]
        # What a guest with all rights in its own network makes of it.
        lines += [f"ip route add {net} via 192.0.2.1" for net in ("10.0.0.0/8", "127.0.0.2/32")]
        lines += ["probe reach 10.0.0.2 80", "probe ping 10.0.0.1", "probe frame"]
        ended = behind_passt.run(
            f"--allow=127.0.0.1:{allowed.port}",
            f"--allow=[::1]:{allowed_six.port}",
            new_root("\n".join(lines)),
            str(port),
        )
        found = ended.results
        refused = {"refused": ("ECONNREFUSED", "EINPROGRESS")}  # Debian 12's is silent
        wrong = {
            attempt: (found.get(attempt), wanted)
            for attempt, wanted in attempts.items()
            if found.get(attempt) not in refused.get(wanted, (wanted,))
        }
        assert not wrong, (wrong, ended)
        assert found["reach 10.0.0.2 80"] in refused["refused"]
        assert frames.have(b"ping\n")  # of the allowed connections
        assert not frames.have(b"raw packet")
        assert "dns" not in found
        assert (allowed.visits, allowed_six.visits) == (1, 1)
        assert (other.visits, elsewhere.visits, resolver.visits) == (0, 0, 0)


def test_names_lead_to_what_is_allowed_and_others_fail_at_once(
    users_behind_passt: Launcher, new_root: NewRoot, port: int
) -> None:
    with Echo("127.0.0.1", 8443) as internal:
        names = ("internal.yesterday.localhost", "host.internal", "127-0-0-1.host.internal")
        # Debian 12's passt does not finish a connection that the guest closes one way first.
        asked = "; ".join(f"(echo ping; sleep 3) | nc {name} 8443" for name in names)
        root = new_root(f"{asked}; time -f %e nc other.example 8443 2>&1; cat /etc/hosts >&2")
        (root / "etc").mkdir()
        text = "127.0.0.1 localhost internal.yesterday.localhost\n10.1.1.1 kept\n"
        (root / "etc/hosts").write_text(text)
        (root / "etc/resolv.conf").write_text("nameserver 10.0.0.1\n")
        ended = users_behind_passt.run(root, str(port))
        *pongs, unknown, _status, seconds = ended.stdout.decode().splitlines()
        assert (pongs, internal.visits) == (["pong"] * 3, 3), ended
        assert "bad address" in unknown
        assert float(seconds) < 2
        assert b"127.0.0.1 localhost\n10.1.1.1 kept\n" in ended.stderr
        assert (root / "etc/hosts").read_text() == text


def test_one_port_is_open_on_the_host_while_the_guest_listens_and_no_other(
    users_behind_passt: Launcher, new_root: NewRoot, port: int
) -> None:
    listeners = ["0.0.0.0 8080", ":: 8081", f"0.0.0.0 {port}", "0.0.0.0 0"]
    script = "\n".join(f"probe listen {one}" for one in listeners)
    script += "\nmkdir -p /www; echo hello >/www/index.html; httpd -p 80 -h /www; sleep 8"
    script += "; kill $(pidof httpd); sleep 60"
    before = sockets()
    with users_behind_passt.serve(new_root(script), port) as server:
        assert server.get() == b"hello\n"
        assert sockets() - before == {f"tcp 0100007F:{port:04X}"}
        deadline = time.monotonic() + 60
        while sockets() - before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("host", ["::1", "0.0.0.0"])
def test_the_port_is_opened_on_the_bind_address(
    users_behind_passt: Launcher, new_root: NewRoot, port: int, host: str
) -> None:
    process = users_behind_passt.start(f"--bind={host}", new_root(HTTPD), str(port))
    server = Server(process, port)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                url_host = f"[{host}]" if ":" in host else "127.0.0.9"
                assert server.get(host=url_host) == b"hello\n"
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
    finally:
        process.kill()
        process.communicate()


def test_a_client_that_does_not_read_and_a_slow_one_cost_others_nothing_and_a_stop_nothing(
    behind_passt: Launcher, root: Path, port: int, slowness: float
) -> None:
    with behind_passt.serve(root, port) as server:

        @contextmanager
        def others() -> Iterator[None]:
            with ask(port, "/smaller"), reading(port, "/smaller", 20_000):
                yield

        assert cost_others(port, others) < SMALL_COST
        with others():
            time.sleep(1)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
            # The server gives its clients one of them.
            assert time.monotonic() - began < max(2, STOP_BY_SLOWNESS * slowness)


def test_the_status_and_the_streams_are_the_apps(
    users_behind_passt: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root('echo out; echo err >&2; echo "$@"; exit 7')
    ended = users_behind_passt.run(root, str(port), "--", "a b", "c")
    assert (ended.status, ended.stdout, ended.stderr) == (7, b"out\na b c\n", b"err\n")
    app = users_behind_passt.start_app(new_root(GRACEFUL_APP), port)
    assert app.stop().status == STATUS_WHEN_ASKED


def test_when_passt_ends_the_vm_does_with_70_and_with_the_supervisor_both(
    behind_passt: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(HTTPD)
    with behind_passt.serve(root, port) as server:
        children = children_of(server.process.pid)
        (passt,) = (one for one in children if b"passt" in (one / "cmdline").read_bytes()[:60])
        os.kill(int(passt.name), signal.SIGKILL)
        assert server.process.wait(30) == 70
        assert server.process.stderr is not None
        assert b"the network of the VM is gone" in server.process.stderr.read()
    with behind_passt.serve(root, port) as server:
        children = children_of(server.process.pid)
        assert len(children) == 2
        server.process.kill()
        assert all(is_gone_within(1, int(one.name)) for one in children)
