"""A VMM that its guest has taken over: what it can still do to the supervisor, and to the host.

A library with libkrun's symbols runs the attack as native code where the guest would start, behind
every wall of the sandbox.
"""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework import attacks, fake_vmm
from tests.framework.launch import Ended
from tests.framework.namespaces import UNSHARE

TakeOver = Callable[..., Ended]


@pytest.fixture
def take_over(tmp_path: Path) -> TakeOver:
    """Launch with a VMM that runs this C code, and ends with status 5."""

    def launch(attack: str) -> Ended:
        launcher, arguments = fake_vmm.prepare(tmp_path, attack)
        return launcher.run(*arguments, "30778")

    return launch


def write(text: str) -> str:
    return f'if (write(4, "{text}", {len(text.encode().decode("unicode_escape"))}) < 0) _exit(99);'


def test_a_vmm_that_does_nothing_ends_with_its_own_status(take_over: TakeOver) -> None:
    ended = take_over("")
    assert (ended.status, ended.stderr) == (5, b"")


@pytest.mark.parametrize(
    "report", ["listener 9\\n", "listener x\\n", "nonsense", "70\\0too few", "99\\0a\\0b\\0c\\0d"]
)
def test_a_made_up_report_is_70_in_one_line(take_over: TakeOver, report: str) -> None:
    ended = take_over(write(report.replace("\\0", "\\000")))
    assert ended.status == 70
    assert "report can't be read" in ended.error


def test_a_report_without_end_takes_no_memory_and_no_time(take_over: TakeOver) -> None:
    flood = "signal(SIGPIPE, SIG_IGN); static char text[65536];"
    flood += " for (int i = 0; i < 3; i++) { if (write(4, text, 4096) < 0) break; }"
    ended = take_over(f"{flood}")
    assert ended.status == 70
    assert len(ended.error) < 1000


def test_no_attack_by_system_calls_gets_anywhere(tmp_path: Path) -> None:
    launcher, _ = fake_vmm.prepare(tmp_path)
    arguments = fake_vmm.build(tmp_path, attacks.source())
    ended = launcher.run(*arguments, "30778")
    assert attacks.breaches(ended.stdout) == []
    assert (ended.status, ended.stderr) == (fake_vmm.STATUS, b"")


@pytest.mark.parametrize("escape", ["", fake_vmm.CHANGES_ITS_USER])
def test_a_vmm_that_changes_its_user_still_dies_with_the_supervisor(
    tmp_path: Path, escape: str
) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path, escape, fake_vmm.LISTENING, fake_vmm.STAYS)
    process = launcher.start(*arguments, "30778", *fake_vmm.TELLS_ITS_STORY)
    assert fake_vmm.dies_with_its_supervisor(process)


SET_USER_ID = 'open("/guest/file", O_CREAT | O_WRONLY, 0600) < 0 || chmod("/guest/file", 04755)'


def test_a_file_is_made_set_user_id_only_where_no_volume_is_written_to(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    launcher, arguments = fake_vmm.prepare(tmp_path, f"if ({SET_USER_ID}) _exit(90);")
    assert launcher.run(*arguments, "30778").status == fake_vmm.STATUS
    assert launcher.run(*arguments, "30778", f"--volume={volume}:/v:ro").status == fake_vmm.STATUS
    assert launcher.run(*arguments, "30778", f"--volume={volume}:/v").status == 90


def test_what_is_mounted_in_a_volume_is_as_closed_as_the_volume(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "below").mkdir(parents=True)
    attempt = 'if (open("/guest/v/below/file", O_CREAT | O_WRONLY, 0600) < 0) _exit(90);'
    launcher, arguments = fake_vmm.prepare(tmp_path, attempt)
    mounted = replace(
        launcher,
        command=[
            *UNSHARE,
            *("sh", "-c", f'mount -t tmpfs x {volume}/below && exec "$@"', "sh"),
            *launcher.command,
        ],
    )
    assert mounted.run(*arguments, "30778", f"--volume={volume}:/v:ro").status == 90
    assert mounted.run(*arguments, "30778", f"--volume={volume}:/v").status == fake_vmm.STATUS


def test_an_overlay_that_others_could_have_prepared_is_77(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir(mode=0o700)
    (tmp_path / "linked/work").mkdir()
    (tmp_path / "linked/upper").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("linked", "link"):
        ended = launcher.run(*arguments, "30778", f"--overlay={tmp_path / name}")
        assert ended.status in (69, 77), name
        assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "own").mkdir(mode=0o700)
    for name in ("own", "new"):
        for _ in range(2):
            assert launcher.run(*arguments, "30778", f"--overlay={tmp_path / name}").status == 5
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_a_directory_of_other_things_is_no_overlay_and_stays_as_it_is(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    for name, mode, file in (("open", 0o1777, False), ("full", 0o700, True)):
        directory = tmp_path / name
        directory.mkdir()
        directory.chmod(mode)
        if file:
            (directory / "letter").touch()
        ended = launcher.run(*arguments, "30778", f"--overlay={directory}")
        assert ended.status == 77
        assert directory.stat().st_mode & 0o7777 == mode
        assert [path.name for path in directory.iterdir()] == (["letter"] if file else [])


def test_an_overlay_that_was_open_to_others_and_holds_something_is_77(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    overlay = tmp_path / "overlay"
    (overlay / "upper").mkdir(parents=True)
    overlay.chmod(0o777)
    ended = launcher.run(*arguments, "30778", f"--overlay={overlay}")
    assert ended.status == 77
    assert "it is open to others, mode 777" in ended.error


@pytest.mark.parametrize("kind", ["fifo", "hard link"])
def test_a_lock_that_is_no_file_of_its_own_is_an_error(tmp_path: Path, kind: str) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    overlay = tmp_path / "overlay"
    overlay.mkdir(mode=0o700)
    (overlay / "upper").mkdir()
    (overlay / "work").mkdir()
    if kind == "fifo":
        os.mkfifo(overlay / "lock")
    else:
        (overlay / "other").touch()
        (overlay / "lock").hardlink_to(overlay / "other")
    ended = launcher.run(*arguments, "30778", f"--overlay={overlay}", timeout=10)
    assert ended.status == 77
    assert str(overlay / "lock") in ended.error


def test_a_descriptor_above_the_limit_does_not_reach_the_vmm(tmp_path: Path) -> None:
    attempt = "if (fcntl(900, F_GETFD) >= 0) _exit(90);"
    launcher, arguments = fake_vmm.prepare(tmp_path, attempt)

    def leak() -> None:
        os.dup2(0, 900, inheritable=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))

    command = ["sh", "-c", 'exec 9>/dev/null; exec "$@"', "sh", *launcher.command]
    leaking = replace(launcher, command=command)
    process = leaking.start(*arguments, "30778", preexec=leak, close_fds=False)
    process.communicate(timeout=20)
    assert process.returncode == fake_vmm.STATUS


def test_a_vmm_of_which_only_the_lifeline_is_left_is_ended(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path, "syscall(SYS_exit, 0);")
    ended = launcher.run(*arguments, "30778", timeout=10)
    assert ended.status == 70


def test_a_terminal_is_neither_read_nor_changed(tmp_path: Path) -> None:
    body = """
        struct termios modes;
        char typed[10];
        if (tcgetattr(1, &modes) < 0)
            _exit(91);
        cfmakeraw(&modes);
        tcsetattr(1, TCSANOW, &modes);
        if (read(0, typed, 1) > 0 || read(1, typed, 1) >= 0 || read(2, typed, 1) >= 0)
            _exit(92);
        if (write(1, "shown", 5) != 5)
            _exit(93);
    """
    launcher, _ = fake_vmm.prepare(tmp_path)
    arguments = fake_vmm.build(tmp_path, "#include <termios.h>\n" + fake_vmm.source(body))
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    os.write(ours, b"typed\n")
    process = launcher.start(*arguments, "30778", stdin=theirs, stdout=theirs, stderr=theirs)
    assert process.wait(20) == fake_vmm.STATUS
    assert termios.tcgetattr(theirs) == before
    assert b"shown" in os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)


FLOOD = """
    signal(SIGINT, SIG_IGN);
    static char line[9000];
    memset(line, 'x', sizeof(line) - 1);
    for (int i = 0; i < 200; i++)
        dprintf(3, "[2026-01-01T00:00:00Z ERROR vmm] %s\\n", line);
    for (;;) pause();
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_stop_is_heard_also_while_nobody_reads_a_flood_of_log(tmp_path: Path, form: str) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path, FLOOD)
    process = launcher.start(*arguments, "30778", "--console", f"--log-format={form}")
    time.sleep(1.5)
    process.terminate()
    # Nobody reads before the end.
    assert process.wait(10) == 128 + signal.SIGTERM
    _, stderr = process.communicate()
    assert all(len(line) < 4096 for line in stderr.splitlines())
    if form == "json":
        assert all(json.loads(line) for line in stderr.splitlines())
