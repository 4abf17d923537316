"""A stop reaches the app in a real guest; what does not stop is ended; a launch tells its story."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework.launch import Launcher, Server, block_stops, ignore_stops
from tests.framework.processes import children_of, holds, is_gone_within
from tests.framework.roots import (
    GRACEFUL_APP,
    GRACEFUL_HTTPD,
    HTTPD,
    STATUS_WHEN_ASKED,
    caddy_root,
    write_app,
)
from tests.framework.seen import wait_until

NewRoot = Callable[..., Path]
Preexec = Callable[[], None] | None

ANSWER_SECONDS = 2
ANSWER_BYTES = 16 * 2**20  # more than all buffers between the app and its client hold
AT_ONCE_BY_SLOWNESS = 0.2  # seconds
STUBBORN = HTTPD.replace("exec httpd", "trap '' INT TERM; exec httpd")
GRACEFUL = HTTPD.replace("exec httpd -f -p 80 -h /www", GRACEFUL_HTTPD)


class SlowClient:
    """A request whose answer is read in two halves, with a pause."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._socket.settimeout(60)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(b"GET /large HTTP/1.0\r\nHost: guest\r\n\r\n")
        self.received = 0

    def read(self, limit: int) -> None:
        while self.received < limit and (data := self._socket.recv(65536)):
            self.received += len(data)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize(
    ("number", "preexec"),
    [
        (signal.SIGTERM, None),
        (signal.SIGINT, ignore_stops),
        (signal.SIGTERM, ignore_stops),
        (signal.SIGINT, block_stops),
    ],
)
def test_a_go_server_finishes_the_request_in_flight_and_ends_with_its_own_status(
    launcher: Launcher, scratch: Path, port: int, number: int, preexec: Preexec
) -> None:
    shutil.rmtree(scratch / "go-stop", ignore_errors=True)  # of one that failed
    root = caddy_root(scratch / "go-stop")
    (root / "etc/Caddyfile").write_text(
        "{\n admin off\n auto_https off\n}\n:80 {\n root * /www\n file_server\n}\n"
    )
    (root / "www").mkdir()
    with (root / "www/large").open("wb") as file:
        file.truncate(ANSWER_BYTES)
    write_app(
        root,
        "#!/bin/busybox sh\n"
        "trap : INT\n"
        "/bin/caddy run --config /etc/Caddyfile --adapter caddyfile 2>/dev/null || exit 1\n"
        "exit 4\n",
    )
    process = launcher.start(root, str(port), "--grace-period=60", preexec=preexec)
    with Server(process, port) as server:
        client = SlowClient(port)
        client.read(ANSWER_BYTES // 4)
        process.send_signal(number)
        time.sleep(ANSWER_SECONDS)  # the VM may be gone by then, and the kernel have the rest
        client.read(2 * ANSWER_BYTES)
        assert client.received > ANSWER_BYTES
        client.close()
        stdout, stderr = server.process.communicate(timeout=30)
        assert (process.returncode, stderr) == (4, b""), stdout
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("number", "preexec"),
    [(signal.SIGTERM, None), (signal.SIGINT, ignore_stops), (signal.SIGHUP, block_stops)],
)
def test_an_app_that_ignores_all_is_ended_after_the_grace_period_or_by_a_second_signal(
    launcher: Launcher,
    new_root: NewRoot,
    port: int,
    number: int,
    preexec: Preexec,
    slowness: float,
) -> None:
    root = new_root(STUBBORN)
    with Server(launcher.start(root, str(port), "--grace-period=2", preexec=preexec), port) as one:
        ended = one.stop(number)
        assert ended.status == 128 + number
        assert 2 <= ended.seconds < 4
    with Server(launcher.start(root, str(port), preexec=preexec), port) as one:
        one.process.send_signal(number)
        time.sleep(1)
        assert one.process.poll() is None
        ended = one.stop(signal.SIGQUIT)
        assert ended.status == 128 + number
        assert ended.seconds < max(1, AT_ONCE_BY_SLOWNESS * slowness)


def test_a_stop_while_the_guest_boots_ends_it_at_once(
    launcher: Launcher, new_root: NewRoot, port: int, slowness: float
) -> None:
    process = launcher.start(new_root(STUBBORN), str(port))
    # The guest's processor is there, and its kernel has only begun.
    wait_until(lambda: any(holds(vmm, "kvm-vcpu:0") for vmm in children_of(process.pid)))
    ended = Server(process, port).stop(signal.SIGTERM)
    assert (ended.status, ended.stderr) == (128 + signal.SIGTERM, b"")
    assert ended.seconds < max(1, AT_ONCE_BY_SLOWNESS * slowness)


def test_an_app_that_has_started_and_does_not_listen_is_asked(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    server = launcher.start_app(new_root(GRACEFUL_APP), port)
    assert server.stop(signal.SIGQUIT).status == STATUS_WHEN_ASKED


def test_a_launch_tells_its_story_and_a_service_manager_hears_of_it(
    launcher: Launcher, new_root: NewRoot, port: int, scratch: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(scratch / "notify"))
        manager.settimeout(60)
        process = launcher.start(
            "--log-format=json",
            "--log-level=info",
            new_root(GRACEFUL),
            str(port),
            env={"NOTIFY_SOCKET": str(scratch / "notify")},
        )
        assert manager.recv(100) == b"READY=1"
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        server = Server(process, port)
        server.wait_until_it_answers()
        # Neither bytes nor the guest depend on the supervisor, which goes on where it was.
        process.send_signal(signal.SIGSTOP)
        assert server.get() == b"hello\n"
        process.send_signal(signal.SIGTERM)
        ended = server.stop(signal.SIGCONT)
        assert manager.recv(100) == b"STOPPING=1"
    assert ended.status == STATUS_WHEN_ASKED, ended
    story = [json.loads(line) for line in ended.stderr.splitlines()]
    events = ["start", "vmm-started", "ready", "stopping", "ended"]
    assert [one["event"] for one in story] == events
    assert story[-1]["app_status"] == STATUS_WHEN_ASKED
    assert story[-1]["peak_memory_mib"] < 512 + 100


def test_an_app_that_never_listens_is_70_after_the_ready_timeout(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    ended = launcher.run(new_root("sleep 100"), str(port), "--ready-timeout=12")
    assert ended.status == 70
    assert "it does not listen on port 80 after 12 s" in ended.error


def test_a_vmm_that_is_killed_is_70(launcher: Launcher, new_root: NewRoot, port: int) -> None:
    with launcher.serve(new_root(HTTPD), port) as server:
        vmm = int(server.vmm.name)
        os.kill(vmm, signal.SIGKILL)
        stdout, stderr = server.process.communicate(timeout=10)
        assert server.process.returncode == 70, stdout
        assert b"the VMM was killed by signal 9" in stderr
        assert is_gone_within(1, vmm)
