"""A stop is asked for, waited for, and forced; a start that leads nowhere is ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.framework import fake_vmm
from tests.framework.fake_vmm import (
    APP_STARTED,
    IGNORES_SIGINT,
    LISTENING,
    STAYS,
    STOPS_ON_SIGINT,
)
from tests.framework.launch import Ended, block_stops, ignore_stops
from tests.framework.processes import is_gone_within, processor_seconds, with_argument

PORT = 30779
NOBODY = 65534
SOON = 1.0

GRACEFUL = (STOPS_ON_SIGINT, APP_STARTED, LISTENING, STAYS)
STUBBORN = (IGNORES_SIGINT, APP_STARTED, LISTENING, STAYS)
BOOTING = (STOPS_ON_SIGINT, STAYS)


class Run:
    """A launch whose messages are JSON at level info."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def wait_for(self, event: str) -> dict[str, object]:
        """Read messages up to this one."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            found: dict[str, object] = json.loads(line)
            if found["event"] == event:
                return found
        raise AssertionError(f"it ended without {event}")

    def end(self, *signals: int) -> Ended:
        started = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.1)
        stdout, stderr = self.process.communicate(timeout=20)
        return Ended(self.process.returncode, stdout, stderr, time.monotonic() - started)


Start = Callable[..., Run]


STARTED_WITH = [None, ignore_stops, block_stops]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(
            vmm: tuple[str, ...],
            *options: str,
            env: dict[str, str] | None = None,
            preexec: Callable[[], None] | None = None,
            **streams: int | None,
        ) -> Run:
            launcher, arguments = fake_vmm.prepare(tmp_path, *vmm)
            process = launcher.start(
                *arguments,
                str(PORT),
                "--log-level=info",
                "--log-format=json",
                *options,
                env=env,
                preexec=preexec,
                **streams,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Run(process)

        yield start


@pytest.mark.parametrize("preexec", STARTED_WITH)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_an_app_that_ends_when_asked_has_its_own_status(
    start: Start, number: int, preexec: Callable[[], None] | None
) -> None:
    run = start(GRACEFUL, preexec=preexec)
    run.wait_for("ready")
    ended = run.end(number)
    assert ended.status == 3
    assert ended.seconds < SOON


@pytest.mark.parametrize("preexec", STARTED_WITH)
def test_an_app_that_ignores_all_is_ended_after_the_grace_period(
    start: Start, preexec: Callable[[], None] | None
) -> None:
    run = start(STUBBORN, "--grace-period=0.7", preexec=preexec)
    run.wait_for("ready")
    ended = run.end(signal.SIGHUP)
    assert ended.status == 128 + signal.SIGHUP
    assert 0.7 <= ended.seconds < 0.7 + SOON


@pytest.mark.parametrize("preexec", STARTED_WITH)
def test_a_second_signal_ends_the_vm_at_once(
    start: Start, preexec: Callable[[], None] | None
) -> None:
    run = start(STUBBORN, preexec=preexec)
    run.wait_for("ready")
    ended = run.end(signal.SIGTERM, signal.SIGINT)
    assert ended.status == 128 + signal.SIGTERM
    assert ended.seconds < SOON


def test_the_same_signal_again_within_a_second_is_no_second_request(start: Start) -> None:
    run = start(STUBBORN)
    run.wait_for("ready")
    for _ in range(3):  # ^C to the group, the manager's own, and a nervous user
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert run.wait_for("stopping")["signal"] == signal.SIGINT
    time.sleep(1)
    assert run.process.poll() is None
    ended = run.end(signal.SIGINT)
    assert ended.status == 128 + signal.SIGINT
    assert ended.seconds < SOON


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_stop_that_is_sent_to_the_vmm_as_well_is_asked_of_the_app(
    start: Start, number: int
) -> None:
    run = start(GRACEFUL)
    vmm = run.wait_for("vmm-started")["vmm_pid"]
    run.wait_for("ready")
    assert isinstance(vmm, int)
    os.kill(vmm, number)
    assert run.end(number).status == 3


def test_a_parent_that_ignores_the_end_of_children_costs_no_status(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    assert launcher.run(*arguments, str(PORT), preexec=ignore).status == fake_vmm.STATUS


def test_a_stop_before_the_app_has_started_ends_the_vm_at_once(start: Start) -> None:
    run = start(BOOTING)
    run.wait_for("vmm-started")
    time.sleep(0.2)
    ended = run.end(signal.SIGTERM)
    assert ended.status == 128 + signal.SIGTERM
    assert ended.seconds < SOON


def test_standard_output_of_the_programs_name_is_no_app_that_started(
    start: Start, tmp_path: Path
) -> None:
    with (tmp_path / "app").open("wb") as output:
        run = start((IGNORES_SIGINT, STAYS), stdout=output.fileno())
        run.wait_for("vmm-started")
        time.sleep(0.2)
        ended = run.end(signal.SIGTERM)
    assert ended.status == 128 + signal.SIGTERM
    assert ended.seconds < SOON


def test_a_vmm_that_is_killed_while_nobody_looks_is_70(start: Start) -> None:
    """Its report is there, and its end as well, before the supervisor comes to either."""
    run = start(BOOTING, "--log-level=debug")
    vmm = run.wait_for("vmm-started")["vmm_pid"]
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    assert isinstance(vmm, int)
    os.kill(vmm, signal.SIGKILL)
    run.process.send_signal(signal.SIGCONT)
    failure = run.wait_for("failed")
    assert (failure["status"], run.end().status) == (70, 70), str(failure["message"])
    assert "killed by signal 9" in str(failure["why"])


def test_an_app_that_started_is_asked_also_before_it_listens(start: Start) -> None:
    run = start((STOPS_ON_SIGINT, APP_STARTED, STAYS))
    fake_vmm.wait_until_the_app_has_started(run.process)
    assert run.end(signal.SIGTERM).status == 3


def test_a_vmm_that_hangs_is_ended_after_the_grace_period(start: Start) -> None:
    run = start(GRACEFUL, "--grace-period=0.3")
    vmm = run.wait_for("vmm-started")["vmm_pid"]
    run.wait_for("ready")
    assert isinstance(vmm, int)
    os.kill(vmm, signal.SIGSTOP)
    ended = run.end(signal.SIGTERM)
    assert ended.status == 128 + signal.SIGTERM
    assert ended.seconds < 0.3 + SOON


def test_a_supervisor_that_was_stopped_goes_on_where_it_was(start: Start) -> None:
    run = start(GRACEFUL)
    run.wait_for("ready")
    run.process.send_signal(signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", PORT), timeout=5):
        pass
    run.process.send_signal(signal.SIGTERM)
    assert run.end(signal.SIGCONT).status == 3


def test_an_app_that_never_listens_is_70_after_the_ready_timeout(start: Start) -> None:
    run = start((APP_STARTED, STAYS), "--ready-timeout=0.5")
    failure = run.wait_for("failed")
    assert failure["status"] == 70
    assert "does not listen on port 80 after 0.5 s" in str(failure["why"])
    assert run.end().status == 70


def test_an_app_that_never_listens_stays_where_no_time_is_set(start: Start) -> None:
    run = start((STOPS_ON_SIGINT, APP_STARTED, STAYS), "--ready-timeout=0")
    fake_vmm.wait_until_the_app_has_started(run.process)
    time.sleep(1)
    assert run.end(signal.SIGTERM).status == 3


def test_a_ready_timeout_that_passes_during_a_stop_is_nothing_to_wait_for(start: Start) -> None:
    run = start((IGNORES_SIGINT, APP_STARTED, STAYS), "--ready-timeout=1", "--grace-period=3")
    fake_vmm.wait_until_the_app_has_started(run.process)
    run.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    before = processor_seconds(run.process.pid)
    time.sleep(1)
    assert processor_seconds(run.process.pid) - before < 0.2
    assert run.end().status == 128 + signal.SIGTERM


PANICS = r"""
    dprintf(6, "the guest's own\n");
    dprintf(2, "\nthread 'fs worker' panicked at src/fs.rs:9:5:\nnot UTF-8\n");
"""


def test_a_thread_of_libkruns_that_panics_ends_the_vm_with_70(start: Start) -> None:
    run = start((IGNORES_SIGINT, APP_STARTED, LISTENING, PANICS, STAYS))
    ended = run.end()
    assert ended.status == 70
    assert ended.seconds < SOON + 1
    lines = ended.stderr.splitlines()
    assert b"the guest's own" in lines
    (failure,) = (json.loads(line) for line in lines if b'"failed"' in line)
    assert "thread 'fs worker' panicked at src/fs.rs:9:5: not UTF-8" in failure["why"]


def test_an_app_that_listens_in_time_stays(start: Start) -> None:
    run = start(GRACEFUL, "--ready-timeout=2")
    run.wait_for("ready")
    time.sleep(2.2)
    assert run.end(signal.SIGTERM).status == 3


def test_a_service_manager_hears_of_readiness_and_of_the_stop(start: Start, tmp_path: Path) -> None:
    for address in (str(tmp_path / "notify"), "\0krunclient-test-notify"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(address)
            manager.settimeout(10)
            run = start(GRACEFUL, env={"NOTIFY_SOCKET": address.replace("\0", "@")})
            assert manager.recv(100) == b"READY=1"
            with socket.create_connection(("127.0.0.1", PORT), timeout=5):
                pass
            run.process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert run.end().status == 3


@pytest.mark.parametrize("address", ["/nowhere/socket", f"/{'long' * 28}"])
def test_a_service_manager_that_is_gone_costs_a_warning_and_no_more(
    start: Start, address: str
) -> None:
    run = start(GRACEFUL, env={"NOTIFY_SOCKET": address})
    assert "READY=1 can't be sent" in str(run.wait_for("notify")["message"])
    assert run.end(signal.SIGTERM).status == 3


def test_a_service_manager_that_does_not_listen_holds_nothing_up(
    start: Start, tmp_path: Path
) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        manager.bind(str(tmp_path / "notify"))
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"x", str(tmp_path / "notify"))
        run = start(GRACEFUL, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        run.wait_for("notify")
        assert run.end(signal.SIGTERM).status == 3


@pytest.mark.parametrize("option", ["SO_REUSEPORT", "SO_REUSEADDR"])  # by libkrun's version
def test_without_a_sandbox_the_guest_is_served_and_readiness_told(
    start: Start, option: str
) -> None:
    listening = LISTENING.replace(
        "int socket_ = socket(AF_INET, SOCK_STREAM, 0);",
        "int socket_ = socket(AF_INET, SOCK_STREAM, 0), on = 1;"
        f" setsockopt(socket_, SOL_SOCKET, {option}, &on, sizeof(on));",
    ).replace("htons(80)", f"htons({PORT})")
    run = start((STOPS_ON_SIGINT, listening, STAYS), "--sandbox=off")
    run.wait_for("ready")
    socket.create_connection(("127.0.0.1", PORT), timeout=5).close()
    assert run.end(signal.SIGTERM).status == 3


def test_the_story_of_a_launch_is_told_in_a_few_messages(start: Start) -> None:
    run = start(GRACEFUL)
    seen = [run.wait_for(event) for event in ("start", "vmm-started", "ready")]
    ended = run.end(signal.SIGTERM)
    seen += [json.loads(line) for line in ended.stderr.splitlines()]
    assert [one["event"] for one in seen] == ["start", "vmm-started", "ready", "stopping", "ended"]
    for one in seen:
        assert (one["pid"], one["port"], one["level"]) == (run.process.pid, PORT, "info")
        assert str(one["root"]).endswith("/root")
    assert 0 < int(str(seen[2]["milliseconds"])) < 20_000
    record = seen[-1]
    assert (record["app_status"], record["stopped_by"], record["forced"]) == (3, 15, False)
    assert float(str(record["seconds"])) > 0
    assert int(str(record["peak_memory_mib"])) > 0


WRITES = """
    static char some[3 << 20];
    int file = open("/guest/some", O_CREAT | O_WRONLY, 0600);
    if (write(file, some, sizeof(some)) != sizeof(some)) _exit(95);
"""


@pytest.mark.parametrize(
    ("options", "lost"),
    [((), 3), (("--overlay",), None), (("--sandbox=off",), None)],
    ids=["in memory", "overlay", "no sandbox"],
)
def test_what_was_written_to_memory_is_told_to_be_lost(
    tmp_path: Path, options: Sequence[str], lost: float | None
) -> None:
    writes = WRITES if options != ("--sandbox=off",) else ""
    launcher, arguments = fake_vmm.prepare(tmp_path, writes)
    place = [tmp_path / "overlay"] if options == ("--overlay",) else []
    given: list[str | Path] = [*fake_vmm.TELLS_ITS_STORY, *options, *place]
    ended = launcher.run(*arguments, str(PORT), *given)
    assert ended.status == fake_vmm.STATUS
    record = json.loads(ended.stderr.splitlines()[-1])
    assert record["lost_mib"] == lost
    sentence = "what it wrote is lost, 3 MiB: --volume, --overlay or --state-dir keeps it"
    assert (sentence in record["message"]) is bool(lost)


def test_a_run_that_goes_well_says_nothing_by_default(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    assert launcher.run(*arguments, str(PORT)).stderr == b""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that other users can come to, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def test_with_die_with_parent_nothing_outlives_the_parent(open_directory: Path) -> None:
    launcher, arguments = fake_vmm.prepare(open_directory, *STUBBORN)

    def is_gone_with_its_parent(*options: str) -> bool:
        command = [*launcher.command, *arguments, str(PORT), "--log-level=info", *options]
        script = '"$@" & echo $!; wait'
        parent = subprocess.Popen(
            ["sh", "-c", script, "sh", *command],
            cwd=launcher.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert parent.stdout is not None
        assert parent.stderr is not None
        supervisor = int(parent.stdout.readline())
        while b"accepts connections" not in (line := parent.stderr.readline()):
            assert b"error" not in line, line
        parent.kill()
        gone = is_gone_within(SOON, supervisor)
        if not gone:
            os.kill(supervisor, signal.SIGKILL)
        parent.communicate()
        return gone

    assert is_gone_with_its_parent("--die-with-parent")
    assert not is_gone_with_its_parent()
    if os.geteuid() == 0:
        overlay = open_directory / "overlay"
        overlay.mkdir(mode=0o700)
        os.chown(overlay, NOBODY, NOBODY)
        as_nobody = (f"--user={NOBODY}", f"--overlay={overlay}")
        assert is_gone_with_its_parent("--die-with-parent", *as_nobody)


@pytest.mark.parametrize("milliseconds", [0, 2, 5, 10, 20, 40, 80, 160, 320])
@pytest.mark.parametrize("body", [GRACEFUL, STUBBORN], ids=["graceful", "stubborn"])
def test_where_two_signals_a_stop_and_a_dying_parent_meet_nothing_is_left(
    tmp_path: Path, body: Sequence[str], milliseconds: int
) -> None:
    """At some time between the start and readiness, and after it."""
    launcher, arguments = fake_vmm.prepare(tmp_path, *body)
    command = [*launcher.command, *arguments, str(PORT), "--die-with-parent"]
    parent = subprocess.Popen(
        ["sh", "-c", '"$@" & echo $!; wait', "sh", *command],
        cwd=launcher.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    supervisor = int(parent.stdout.readline())
    time.sleep(milliseconds / 1000)
    with contextlib.suppress(ProcessLookupError):  # it may have ended at the first
        os.kill(supervisor, signal.SIGINT)
        os.kill(supervisor, signal.SIGTERM)
        parent.kill()
        os.kill(supervisor, signal.SIGHUP)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + SOON
    while left := with_argument(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
