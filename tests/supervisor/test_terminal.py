"""--console at a terminal: what is typed is the guest's, and the terminal is given back."""

from __future__ import annotations

import os
import pty
import signal
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.framework import fake_vmm
from tests.framework.fake_vmm import APP_STARTED, STAYS
from tests.framework.terminal import Session

PORT = 30830
SOON = 10

# It tells what it reads, byte by byte, and each new size; ^C, typed, is its end.
TALKS = """
    struct winsize { unsigned short rows, columns, x, y; } size;
    static char byte;
    signal(SIGWINCH, tell_size);
    syscall(SYS_ioctl, 1, 0x5413, &size);
    dprintf(1, "hello %d %d\\n", size.rows, size.columns);
    for (;;) {
        long got = read(0, &byte, 1);
        if (got == 1) dprintf(1, "<%d>", byte);
        if (got == 1 && byte == 3) _exit(7);
        if (got == 1 && byte == 'q') _exit(9);
    }
"""
TELL_SIZE = """
    void tell_size(int number) {
        unsigned short size[4] = {number - number};
        syscall(SYS_ioctl, 1, 0x5413, size);
        dprintf(1, "size %d %d\\n", size[0], size[1]);
    }
"""


Open = Callable[..., Session]


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_session(*vmm: str, options: tuple[str, ...] = ("--console",)) -> Session:
            launcher, arguments = fake_vmm.prepare(tmp_path, *vmm)
            words = (*arguments, str(PORT), *options)
            session = Session(partial(launcher.start, *words), SOON)
            stack.callback(session.close)
            return session

        yield open_session


def talks(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(fake_vmm, "INCLUDES", f"{fake_vmm.INCLUDES}{TELL_SIZE}")
    return TALKS


def test_keys_size_and_output_go_both_ways_and_the_status_comes_back(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(talks(monkeypatch))
    session.wait_for(b"hello 33 99\r\n")
    assert session.is_raw()
    session.type(b"a\r\x1a\x1c\x04")  # Enter, ^Z, ^\, ^D
    session.wait_for(b"<97><13><26><28><4>")
    session.resize(50, 120)
    session.wait_for(b"size 50 120\r\n")
    session.type(b"q")
    session.wait_for(b"<113>")
    session.ends_with(9)


def test_ctrl_c_is_the_guests_and_no_request_to_stop(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(talks(monkeypatch))
    session.wait_for(b"hello")
    session.type(b"\x03")
    session.wait_for(b"<3>")
    session.ends_with(7)


def test_a_request_to_stop_types_ctrl_c_on_the_guests_console(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(APP_STARTED, talks(monkeypatch))
    session.wait_for(b"hello")
    session.process.send_signal(signal.SIGTERM)
    session.wait_for(b"<3>")
    session.ends_with(7)


@pytest.mark.parametrize(
    ("vmm", "numbers", "status"),
    [
        (("_exit(4);",), (), 4),
        (("raise(SIGSEGV);",), (), 70),
        ((APP_STARTED, STAYS), (signal.SIGTERM, signal.SIGINT), 128 + signal.SIGTERM),
        ((STAYS,), (signal.SIGHUP,), 128 + signal.SIGHUP),
    ],
)
def test_the_terminal_is_as_it_was_after_every_end(
    open_session: Open, vmm: tuple[str, ...], numbers: tuple[int, ...], status: int
) -> None:
    session = open_session('dprintf(1, "begun\\n");', *vmm)
    session.wait_for(b"begun\r\n")
    for number in numbers:
        session.process.send_signal(number)
        time.sleep(0.1)
    session.ends_with(status)


def test_the_terminal_is_as_it_was_where_nothing_started(open_session: Open) -> None:
    session = open_session("_exit(4);", options=("--console", "--metrics=/nowhere/x"))
    session.wait_for(b"--metrics can't be used")
    session.ends_with(64)


def test_all_of_a_long_last_word_is_shown(open_session: Open) -> None:
    session = open_session('for (int n = 0; n < 2000; n++) dprintf(1, "%08d\\n", n);')
    for number in range(2000):
        session.wait_for(b"%08d\r\n" % number)
    session.ends_with(fake_vmm.STATUS)


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_where_either_side_is_no_terminal_nothing_is_interactive(
    tmp_path: Path, stream: str
) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path, "_exit(isatty(0) ? 1 : 2);")
    keyboard, screen = pty.openpty()
    try:
        before = termios.tcgetattr(screen)
        words = (*arguments, str(PORT), "--console")
        if stream == "stdin":
            process = launcher.start(*words, stdin=screen)
        else:
            process = launcher.start(*words, stdout=screen)
        process.communicate(timeout=SOON)
        assert process.returncode == 2
        assert termios.tcgetattr(screen) == before
    finally:
        os.close(keyboard)
        os.close(screen)


def test_without_console_a_terminal_is_no_keyboard_of_the_guests(open_session: Open) -> None:
    session = open_session("_exit(isatty(0) ? 1 : 2);", options=())
    session.ends_with(2)
