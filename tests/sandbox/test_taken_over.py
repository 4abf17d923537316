"""A VMM that its guest has taken over: what it can still do to the supervisor, and to the host.

A library with libkrun's symbols runs the attack as native code where the guest would start, behind
every wall of the sandbox.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework import fake_vmm
from tests.framework.launch import Ended

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
