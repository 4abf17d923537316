"""The end of a VMM child becomes the status that is true."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from krunclient.errors import BusyError, UsageError, VmError
from krunclient.supervisor.verdict import End, status

BY_ITSELF = End(
    lost_mib=0,
    wait_status=0,
    was_set_up=True,
    stop_signal=None,
    forced=False,
    failure=None,
    reported=None,
    without_status=False,
    cause="",
)
FAILURE = BusyError("what", "thing", "why", "remedy")
REPORTED = UsageError("what", "thing", "why", "remedy")
KILLED = 9


def verdict(**differences: Any) -> int:
    return status(BY_ITSELF.replace(**differences), "/srv/app")


def exited(code: int) -> int:
    """A wait status, wait(2)."""
    return code << 8


@pytest.mark.parametrize("code", [0, 7, 255])
def test_a_status_that_the_guest_reported_is_the_apps(code: int) -> None:
    assert verdict(wait_status=exited(code)) == code
    assert BY_ITSELF.replace(wait_status=exited(code)).app_status == code


def test_a_status_that_nobody_reported_is_an_error_with_its_cause() -> None:
    with pytest.raises(VmError, match=r"without the app's status \(Kernel panic\)"):
        verdict(without_status=True, cause=" (Kernel panic)")


def test_a_vmm_that_was_killed_is_an_error_unless_a_stop_was_asked_for() -> None:
    with pytest.raises(VmError, match="signal 9"):
        verdict(wait_status=KILLED)
    assert verdict(wait_status=KILLED, stop_signal=15, forced=True) == 128 + 15
    assert verdict(wait_status=2, stop_signal=15) == 128 + 15


def test_an_app_that_ends_when_asked_to_has_its_own_status() -> None:
    assert verdict(wait_status=exited(3), stop_signal=15) == 3


def test_a_guest_that_panics_when_asked_to_stop_is_an_error() -> None:
    with pytest.raises(VmError):
        verdict(stop_signal=15, without_status=True)


def test_what_ended_the_vm_is_the_error_whatever_the_vmm_said() -> None:
    with pytest.raises(BusyError):
        verdict(wait_status=KILLED, failure=FAILURE, reported=REPORTED)
    with pytest.raises(UsageError):
        verdict(wait_status=exited(70), reported=REPORTED, was_set_up=False)


def test_a_stop_that_was_forced_has_its_status_whatever_else_went_wrong() -> None:
    forced = {"stop_signal": 15, "forced": True, "wait_status": KILLED}
    assert verdict(**forced, reported=REPORTED) == 128 + 15
    assert verdict(**forced, was_set_up=False) == 128 + 15


def test_a_vmm_that_ends_silently_before_it_was_set_up_is_an_error() -> None:
    with pytest.raises(VmError, match="before it was set up"):
        verdict(was_set_up=False)
    with pytest.raises(VmError, match="killed by signal 9 before it was set up"):
        verdict(was_set_up=False, wait_status=KILLED)


def test_a_vmm_that_its_own_filter_has_killed_is_told_from_one_that_others_have() -> None:
    with pytest.raises(VmError, match="by signal 31, from a filter of system calls, before"):
        verdict(was_set_up=False, wait_status=int(signal.SIGSYS))


def test_only_what_had_a_vm_has_a_record_of_its_end() -> None:
    assert BY_ITSELF.had_a_vm
    assert BY_ITSELF.replace(failure=FAILURE).had_a_vm
    assert BY_ITSELF.replace(was_set_up=False, stop_signal=15, forced=True).had_a_vm
    assert not BY_ITSELF.replace(was_set_up=False).had_a_vm
    assert not BY_ITSELF.replace(reported=REPORTED).had_a_vm
