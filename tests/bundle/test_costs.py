"""A launch costs no more than this, counted: a count is the same on a busy machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import counts
from tests.framework.counts import BARE_PYTHON, Calls, RecordedLaunch

# Beside what a bare Python takes in the same place: which Python and which C library, these are.
MORE_CALLS, MORE_OPENED = 395, 25
# In instructions of a bare Python, by the version of /usr/bin/python3; and of one that is not here.
# The margin is for other builds of that version, and for what a C library picks by the processor.
INSTRUCTIONS = {"3.11": 1.99, "3.13": 1.8}
OTHER_INSTRUCTIONS = 2.2
MARGIN = 1.01
MORE_PAGE_FAULTS = 1700
PORT = 30655
pytestmark = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK),
    reason="no KVM opens here, and a launch ends there",
)


@pytest.fixture(scope="module")
def launch() -> Iterator[RecordedLaunch]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        Path(name).chmod(0o755)
        yield RecordedLaunch(Path(name))


def test_a_launch_makes_few_system_calls_and_opens_few_files(launch: RecordedLaunch) -> None:
    bare = counts.system_calls(BARE_PYTHON, launch.environment, "exit_group")
    made = launch.system_calls(PORT)
    more = Calls(made.made - bare.made, made.opened - bare.opened)
    assert more.made <= MORE_CALLS, (made, bare)
    assert more.opened <= MORE_OPENED, (made, bare)


def test_a_launch_comes_to_its_fork_in_few_instructions(launch: RecordedLaunch) -> None:
    bare = counts.instructions(BARE_PYTHON, launch.environment, 0)
    taken = launch.instructions(PORT)
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = subprocess.check_output([counts.PYTHON, "-c", version], text=True).strip()
    assert taken / bare <= INSTRUCTIONS.get(python, OTHER_INSTRUCTIONS) * MARGIN


def test_instructions_are_counted_the_same_each_time(launch: RecordedLaunch) -> None:
    """They differed by 137 of 59 million at most."""
    first, second = (launch.instructions(PORT) for _ in range(2))
    assert abs(first - second) <= first / 10_000


def test_a_launch_touches_few_pages(launch: RecordedLaunch) -> None:
    bare = counts.run(BARE_PYTHON, launch.environment).ru_minflt
    assert launch.page_faults(PORT) - bare <= MORE_PAGE_FAULTS
