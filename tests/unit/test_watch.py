"""The end of a VMM child becomes the status that is true."""

from __future__ import annotations

import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient import report
from krunclient.errors import ERRORS_BY_STATUS, VmError
from krunclient.vmmlog import VmmLog
from krunclient.watch import Ended, Stop
from tests.unit.test_vmmlog import PANIC, WITH_STATUS, WITHOUT_STATUS, log_of

USED = resource.getrusage(resource.RUSAGE_SELF)
NO_LOG, _ = log_of("")


def status(wait_status: int, stop: Stop | None = None, log: VmmLog = NO_LOG) -> int:
    return Ended(wait_status, stop, USED).status(log, "/srv/app")


def stop(number: int, *, forced: bool) -> Stop:
    asked = Stop(number, 0.0)
    asked.forced = forced
    return asked


def test_a_status_that_the_guest_reported_is_the_apps() -> None:
    assert status(7 << 8, log=log_of(WITH_STATUS)[0]) == 7


def test_a_status_that_nobody_reported_is_an_error() -> None:
    with pytest.raises(VmError, match="Kernel panic"):
        status(0, log=log_of(PANIC + WITHOUT_STATUS)[0])


def test_a_vmm_that_was_killed_is_an_error_unless_a_stop_was_asked_for() -> None:
    with pytest.raises(VmError, match="signal 9"):
        status(9)
    assert status(9, stop(15, forced=True)) == 128 + 15
    assert status(2, stop(15, forced=False)) == 128 + 15


def test_an_app_that_ends_when_asked_to_has_its_own_status() -> None:
    assert status(3 << 8, stop(15, forced=False)) == 3


def test_a_guest_that_panics_when_asked_to_stop_is_an_error() -> None:
    with pytest.raises(VmError):
        status(0, stop(15, forced=False), log_of(WITHOUT_STATUS)[0])


def test_an_error_comes_back_from_the_child_as_it_was() -> None:
    reader, writer = os.pipe()
    sent = VmError("what", os.fsdecode(b"\xff\n"), "why", "remedy")
    report.send(writer, sent)
    received = report.read(os.read(reader, 200), "/root")
    assert (type(received), received.args) == (VmError, sent.args)


@given(st.binary())
def test_no_report_breaks_the_reader(data: bytes) -> None:
    assert report.read(data, "/root").status in ERRORS_BY_STATUS
