"""An app that is not well is told by each way, soon, and its answers harm nobody."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pytest

from tests.framework import fake_vmm
from tests.framework.fake_vmm import APP_STARTED, LISTENING, STAYS, STOPS_ON_SIGINT, TELLS_ITS_STORY
from tests.framework.launch import Launcher
from tests.framework.processes import processor_seconds
from tests.framework.seen import listed, measured

PORT = 30810
INTERVAL = 0.5
SOON = 10
KRUNCLIENT = Launcher([sys.executable, "-m", "krunclient"], {"PATH": "/usr/bin:/bin"}, Path.cwd())

GOOD = 'dprintf(client, "HTTP/1.1 204 No Content\\r\\n\\r\\n"); close(client);'
# The first answer is good, so that the change is seen; then one of these, for ever.
ASKED = """
    static const char ASKED[] = "GET /up?x=1 HTTP/1.0\\r\\nHost: 127.0.0.1:30810\\r\\n";
"""
SERVE = """
    static char request[65536];
    for (int number = 0;; number++) {
        struct pollfd waits = {socket_, POLLIN, 0};
        poll(&waits, 1, -1);
        int client = accept(socket_, 0, 0);
        if (read(client, request, 4095) < 0) _exit(95);
        if (__builtin_strncmp(request, ASKED, sizeof ASKED - 1)) _exit(94);
        if (number == 0) { GOOD } else { LATER }
    }
"""
LATER = {
    "500": 'dprintf(client, "HTTP/1.1 500 Oh\\r\\n\\r\\n"); close(client);',
    "garbage": 'dprintf(client, "SSH-2.0-OpenSSH_9.2p1\\r\\n"); close(client);',
    "nothing": "close(client);",
    "short": 'dprintf(client, "HTTP/1"); close(client);',
    "frozen": "for (;;) pause();",
    "drips": 'for (;;) { dprintf(client, "H"); usleep(50000); }',
    "endless": 'dprintf(client, "HTTP/1.1 200 OK\\r\\n\\r\\n"); '
    "for (;;) if (send(client, request, sizeof request, MSG_NOSIGNAL) < 0) break;",
    "no end": 'dprintf(client, "HTTP/1.1 200 OK\\r\\n\\r\\nx"); for (;;) pause();',
    "gone": STAYS,
}
WHY = {
    "500": "it answers with status 500",
    "garbage": "its answer is no HTTP",
    "nothing": "it closed without an answer",
    "short": "its answer is no HTTP",
    "frozen": "no answer after 0.5 s",
    "drips": "its answer has not ended after 0.5 s",
    "endless": "its answer is longer than 1 MiB",
    "no end": "its answer has not ended after 0.5 s",
    "gone": "connection refused",
}
ASKS = ("--health-path=/up?x=1", f"--health-interval={INTERVAL}", f"--health-timeout={INTERVAL}")


def vmm(later: str) -> tuple[str, ...]:
    first = f"{GOOD} close(socket_); {STAYS}" if later is LATER["gone"] else GOOD
    return (
        STOPS_ON_SIGINT,
        APP_STARTED,
        LISTENING,
        ASKED,
        SERVE.replace("GOOD", first).replace("LATER", later),
    )


@dataclass(frozen=True)
class Run:
    pid: int
    messages: IO[bytes]
    send_signal: Callable[[int], None]
    wait: Callable[[float], int]

    def read_event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.messages.readline())
        return event

    def wait_for(self, name: str) -> dict[str, Any]:
        while (event := self.read_event())["event"] != name:
            pass
        return event


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What a service manager hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(SOON)
        yield heard


@pytest.fixture
def start(tmp_path: Path, manager: socket.socket) -> Iterator[Callable[..., Run]]:
    with ExitStack() as stack:

        def start(later: str, *options: str) -> Run:
            launcher, arguments = fake_vmm.prepare(tmp_path, *vmm(later))
            process = stack.enter_context(
                launcher.start(
                    *(*arguments, str(PORT), *ASKS, f"--metrics={tmp_path}/vm.prom"),
                    *(*TELLS_ITS_STORY, *options),
                    env={"NOTIFY_SOCKET": manager.getsockname()},
                )
            )
            stack.callback(process.kill)
            assert process.stderr is not None
            return Run(process.pid, process.stderr, process.send_signal, process.wait)

        yield start


def states(manager: socket.socket, last: str) -> list[str]:
    """What was sent, up to what begins so."""
    found: list[str] = []
    while not found or not found[-1].startswith(last):
        found.append(manager.recv(4096).decode())
    return found


def moment(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["time"].replace("Z", "+00:00"))


def told_elsewhere(directory: Path) -> tuple[str, float]:
    """By --list and by the file of --metrics."""
    phase = listed(KRUNCLIENT, [PORT])[PORT]["phase"]
    return phase, measured(directory / "vm.prom")["krunclient_healthy"]


@pytest.mark.parametrize("kind", LATER)
def test_an_app_that_is_not_well_any_more_is_told_by_each_way_within_two_intervals(
    start: Callable[..., Run], manager: socket.socket, tmp_path: Path, kind: str
) -> None:
    run = start(LATER[kind], "--health-retries=1")
    healthy, told = run.wait_for("healthy"), run.wait_for("unhealthy")
    assert (moment(told) - moment(healthy)).total_seconds() < 2 * INTERVAL + 0.5
    assert (told["level"], told["why"]) == ("warning", WHY[kind])
    assert told_elsewhere(tmp_path) == ("unhealthy", 0)
    assert states(manager, "STATUS=unhealthy") == [
        *("READY=1", "WATCHDOG=1", "STATUS=healthy", f"STATUS=unhealthy: {WHY[kind]}")
    ]
    # It is not held up, nor does it ask without a rest.
    used = processor_seconds(run.pid)
    time.sleep(2 * INTERVAL)
    assert processor_seconds(run.pid) - used < INTERVAL
    run.send_signal(signal.SIGTERM)
    assert run.wait_for("stopping")["signal"] == signal.SIGTERM
    assert run.wait(SOON) == 3


def test_an_unhealthy_app_ends_with_70_if_that_is_asked_for(start: Callable[..., Run]) -> None:
    run = start(LATER["500"], "--health-retries=2", "--health-action=exit")
    run.wait_for("unhealthy")
    failed = run.wait_for("failed")
    assert failed["what"] == "the app is unhealthy"
    assert failed["why"] == WHY["500"]
    assert run.wait(SOON) == 70


def test_one_bad_answer_among_good_ones_is_no_news(start: Callable[..., Run]) -> None:
    every_second = f"if (number % 2) {{ {LATER['500']} }} else {{ {GOOD} }}"
    run = start(every_second, "--health-retries=2", "--health-action=exit")
    run.wait_for("healthy")
    time.sleep(4 * INTERVAL)
    run.send_signal(signal.SIGTERM)
    assert run.read_event()["event"] == "stopping"
    assert run.wait(SOON) == 3


def test_an_app_that_comes_back_is_healthy_again(
    start: Callable[..., Run], manager: socket.socket, tmp_path: Path
) -> None:
    run = start(f"if (number < 3) {{ {LATER['500']} }} else {{ {GOOD} }}", "--health-retries=1")
    for event in ("healthy", "unhealthy", "healthy"):
        run.wait_for(event)
    assert states(manager, "STATUS=unhealthy")[-1] == f"STATUS=unhealthy: {WHY['500']}"
    assert states(manager, "STATUS=healthy") == ["WATCHDOG=1", "STATUS=healthy"]
    assert told_elsewhere(tmp_path) == ("healthy", 1)
    assert states(manager, "WATCHDOG=1") == ["WATCHDOG=1"]  # each good answer feeds a watchdog


@pytest.mark.parametrize("kind", ["frozen", "endless"])
def test_a_stop_does_not_wait_for_an_answer(start: Callable[..., Run], kind: str) -> None:
    run = start(LATER[kind], "--health-timeout=60", "--health-retries=1")
    run.wait_for("healthy")
    time.sleep(2 * INTERVAL)
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    assert run.wait(SOON) == 3
    assert time.monotonic() - began < 1
