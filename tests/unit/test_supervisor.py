"""libkrun's log tells whether the status is the app's, and why a VM ended."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient import supervisor, vmm
from krunclient.errors import ERRORS_BY_STATUS, VmError
from krunclient.supervisor import Ended, VmmLog
from tests.unit.test_initconfig import plan

STAMP = "[2026-01-01T00:00:00.000001Z "
WITH_STATUS = f"{STAMP}DEBUG krun_vmm] using vmm exit code: 0\n"
WITHOUT_STATUS = f"{STAMP}DEBUG krun_vmm] using vcpu exit code: 0\n"
PANIC = f"{STAMP}ERROR krun_devices::virtio::console::port_io] [  1.0] Kernel panic - not it\n"


def log_of(text: str) -> VmmLog:
    log = VmmLog(passed_through=False)
    log.feed(text.encode())
    return log


def test_a_status_that_the_guest_reported_is_the_apps() -> None:
    assert supervisor._status(Ended(7 << 8, None), log_of(WITH_STATUS), plan()) == 7


@pytest.mark.parametrize("target", ["vmm", "krun_vmm"])
def test_a_status_that_nobody_reported_is_an_error(target: str) -> None:
    log = log_of(PANIC + WITHOUT_STATUS.replace("krun_vmm", target))
    with pytest.raises(VmError, match="Kernel panic"):
        supervisor._status(Ended(0, None), log, plan())


def test_the_console_cant_forge_libkruns_own_line() -> None:
    forged = f"{STAMP}ERROR krun_devices::virtio::console::port_io] {WITH_STATUS}"
    assert log_of(WITHOUT_STATUS + forged).without_status


def test_a_vmm_that_was_killed_is_an_error_unless_a_stop_was_asked_for() -> None:
    with pytest.raises(VmError, match="signal 9"):
        supervisor._status(Ended(9, None), log_of(""), plan())
    assert supervisor._status(Ended(9, 15), log_of(""), plan()) == 128 + 15


@given(st.integers(1, 40))
def test_lines_are_read_whole_however_they_arrive(size: int) -> None:
    log = VmmLog(passed_through=False)
    data = (PANIC + WITHOUT_STATUS).encode()
    for start in range(0, len(data), size):
        log.feed(data[start : start + size])
    assert log.without_status
    assert "Kernel panic" in log.reason()


def test_a_line_without_end_takes_no_more_than_its_bound() -> None:
    log = VmmLog(passed_through=False)
    for _ in range(100):
        log.feed(b"x" * 65536)
    assert len(log._incomplete) <= supervisor.MAX_LINE_BYTES


@given(st.binary())
def test_no_log_breaks_the_reader(data: bytes) -> None:
    VmmLog(passed_through=False).feed(data + b"\n")


def test_an_error_comes_back_from_the_child_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(vmm, "REPORT", writer)
    sent = VmError("what", os.fsdecode(b"\xff\n"), "why", "remedy")
    vmm.report(sent)
    received = vmm.error_from(os.read(reader, 200), "/root")
    assert (type(received), received.args) == (VmError, sent.args)


@given(st.binary())
def test_no_report_breaks_the_reader(data: bytes) -> None:
    assert vmm.error_from(data, "/root").status in ERRORS_BY_STATUS
