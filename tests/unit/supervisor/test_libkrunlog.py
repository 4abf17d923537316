"""libkrun's log tells whose the status is, and why a VM ended."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient.log import Log
from krunclient.supervisor import libkrunlog
from krunclient.supervisor.libkrunlog import LibkrunLog

STAMP = "[2026-01-01T00:00:00.000001Z "
WITH_STATUS = f"{STAMP}DEBUG krun_vmm] using vmm exit code: 0\n"
WITHOUT_STATUS = f"{STAMP}DEBUG krun_vmm] using vcpu exit code: 0\n"
CONSOLE = f"{STAMP}ERROR init_or_kernel] "
PANIC = f"{CONSOLE}[  1.0] Kernel panic - not syncing\n"
OWN = f"{STAMP}ERROR krun_devices::virtio::vsock] no such thing\n"


def log_of(text: str, *, console: bool = False, level: str = "warning") -> tuple[LibkrunLog, bytes]:
    """The log after it has read this, and what krunclient said of it."""
    reader, writer = os.pipe()
    log = LibkrunLog(Log(level, descriptor=writer), console=console)
    log.feed(text.encode())
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return log, file.read()


@pytest.fixture
def silent() -> LibkrunLog:
    return LibkrunLog(Log("error"), console=False)


@pytest.mark.parametrize("rename", [str, lambda text: text.replace("krun_vmm", "vmm")])
def test_a_status_that_nobody_reported_is_told_from_the_apps(rename: Callable[[str], str]) -> None:
    assert log_of(rename(WITHOUT_STATUS))[0].without_status
    assert not log_of(rename(WITH_STATUS))[0].without_status


def test_the_console_cant_forge_libkruns_own_lines() -> None:
    forged = f"{CONSOLE}{WITH_STATUS}"
    log, _ = log_of(WITHOUT_STATUS + forged)
    assert log.without_status


def test_a_panic_is_the_reason_whatever_comes_after() -> None:
    log, said = log_of(PANIC + OWN)
    assert "Kernel panic" in log.reason()
    assert said == b"krunclient: warning: libkrun: no such thing\n"


def test_errors_of_libkruns_own_are_passed_on_up_to_a_bound() -> None:
    _, said = log_of(OWN * 1000)
    lines = said.decode().splitlines()
    assert len(lines) == libkrunlog.MAX_OWN_ERRORS + 1
    assert lines[-1] == "krunclient: warning: libkrun: further errors are left out"


PANICKED = "thread 'fs worker' (77) panicked at src/fs.rs:9:5:\ncalled `unwrap()` on an `Err`\n"


def test_a_thread_that_panicked_is_told_with_its_message() -> None:
    log, _ = log_of(f"{OWN}\n{PANICKED}note: run with RUST_BACKTRACE=1\n{PANICKED}")
    assert log.thread_panic == (
        "thread 'fs worker' (77) panicked at src/fs.rs:9:5: called `unwrap()` on an `Err`"
    )
    assert log_of(OWN)[0].thread_panic == ""


def test_the_console_cant_forge_a_panic_of_a_thread() -> None:
    assert log_of(f"{CONSOLE}{PANICKED}")[0].thread_panic == ""


def test_an_error_that_tells_of_nothing_wrong_is_a_note_for_debugging() -> None:
    harmless = (
        f"{STAMP}ERROR krun_devices::virtio::vsock] couldn't push pkt to queue, adding it to rxq\n"
    )
    log, said = log_of(harmless)
    assert (said, log.reason()) == (b"", "")
    assert log_of(harmless, level="debug")[1].startswith(b"krunclient: debug: libkrun: couldn't")
    worse = harmless.replace("to queue, adding it to rxq", "anywhere")
    assert log_of(worse)[1].startswith(b"krunclient: warning: libkrun: couldn't push pkt anywhere")


def test_the_console_is_shown_whole_where_asked_for_and_not_else() -> None:
    assert log_of(PANIC, console=True)[1] == PANIC.encode()
    assert log_of(WITH_STATUS, console=True)[1] == b""
    assert log_of(PANIC)[1] == b""


@given(st.integers(1, 40))
def test_lines_are_read_whole_however_they_arrive(size: int) -> None:
    log = LibkrunLog(Log("error"), console=False)
    data = (PANIC + WITHOUT_STATUS).encode()
    for start in range(0, len(data), size):
        log.feed(data[start : start + size])
    assert log.without_status
    assert "Kernel panic" in log.reason()


def test_a_line_without_end_takes_no_more_than_its_bound(silent: LibkrunLog) -> None:
    for _ in range(100):
        silent.feed(b"x" * 65536)
    assert len(silent._incomplete) <= libkrunlog.MAX_LINE_BYTES


@given(st.binary())
def test_no_log_breaks_the_reader(data: bytes) -> None:
    LibkrunLog(Log("error"), console=False).feed(data + b"\n")
