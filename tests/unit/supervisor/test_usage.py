"""What processes use is told as the kernel tells it."""

from __future__ import annotations

import os
import resource
import sys

import pytest

from krunclient.supervisor import usage
from tests.framework.stages import LIBC

MIB = 100
USES_SOME = f"x = bytearray({MIB} * 2**20); sum(range(3 * 10**6)); raise SystemExit(7)"


def processor_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_child_is_reaped_with_its_status_and_what_it_has_used() -> None:
    before = processor_seconds_of_children()
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", USES_SOME], os.environ)
    status, used = usage.reap(LIBC, child)
    assert os.waitstatus_to_exitcode(status) == 7
    spent = processor_seconds_of_children() - before
    assert used.processor_seconds == pytest.approx(spent, abs=0.001)
    assert MIB * 2**20 < used.resident_bytes < 2 * MIB * 2**20


def test_a_process_that_is_no_child_is_no_child_to_reap() -> None:
    with pytest.raises(ChildProcessError, match="wait4"):
        usage.reap(LIBC, 1)
