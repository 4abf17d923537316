"""A shell in a microVM, at a terminal: typing, ^C, a new size, the end, and the terminal then."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.framework.launch import Launcher
from tests.framework.roots import open_to
from tests.framework.terminal import Session

SECONDS = 90  # for a boot on a slow host


@pytest.fixture
def session(any_launcher: Launcher, new_root: Callable[..., Path], port: int) -> Iterator[Session]:
    root = new_root("exit 1")
    if any_launcher.user is not None:
        open_to(any_launcher.user, root)
    words = (
        "--console",
        "--exec=/bin/sh",
        "--grace-period=1",
        "--env=PS1=ready> ",
        root,
        str(port),
    )
    found = Session(partial(any_launcher.start, *words), SECONDS, any_launcher.user)
    yield found
    found.close()


def test_a_shell_is_typed_at_interrupted_resized_and_left(session: Session) -> None:
    session.wait_for(b"ready> ")
    assert session.is_raw()
    session.type(b"echo $((6 * 7))\r")
    session.wait_for(b"\n42\r")
    session.type(b"stty size\r")
    session.wait_for(b"\n33 99\r")
    session.resize(50, 120)
    session.type(b"sleep 1; stty size\r")
    session.wait_for(b"\n50 120\r")
    session.wait_for(b"ready> ")
    # What is typed before a program is in front is the shell's: so it tells that it is.
    session.type(b"sh -c 'echo $((4 + 3)); exec sleep 1000'\r")
    session.wait_for(b"\n7\r")
    session.type(b"\x03")
    session.wait_for(b"ready> ")
    session.type(b"echo status $?\r")
    session.wait_for(b"\nstatus 130\r")
    session.type(b"exit 5\r")
    session.ends_with(5)


def test_a_stop_ends_a_shell_and_gives_the_terminal_back(session: Session) -> None:
    session.wait_for(b"ready> ")
    session.process.send_signal(signal.SIGTERM)
    session.ends_with(128 + signal.SIGTERM)


def test_a_shell_ends_with_what_is_typed(session: Session) -> None:
    session.wait_for(b"ready> ")
    session.type(b"\x04")  # ^D, the end of what is typed
    session.ends_with(0)
