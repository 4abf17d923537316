"""An emulated host may crash or hang: what it says of the tests stays true all the same."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.emulated import MAX_HOSTS, UNEXPECTED_END, Host
from tests.framework.paths import PYTHONPATH

TESTS = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_one(number):
    if number == 2 and "HOST_ENDS" in os.environ:
        os._exit(99)
    assert number != {failing}
"""


def run(directory: Path, failing: int, environment: dict[str, str]) -> tuple[int, str]:
    (directory / "test_some.py").write_text(TESTS.format(failing=failing))
    command = [sys.executable, "-m", "pytest", "-v", "--rootdir=.", "-p", "no:cacheprovider"]
    command += ["-p", "tests.framework.outcomes", f"--outcomes={directory}/outcomes"]
    ended = subprocess.run(
        [*command, "test_some.py"],
        cwd=directory,
        env={"PYTHONPATH": PYTHONPATH, **environment},
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stdout


@pytest.mark.parametrize(("failing", "status"), [(9, 0), (3, 1), (0, 1)])
def test_the_next_host_goes_on_with_the_test_that_ended_one_and_hides_no_failure(
    tmp_path: Path, failing: int, status: int
) -> None:
    ended, output = run(tmp_path, failing, {"HOST_ENDS": "1"})
    assert ended == 99
    assert ("assert 0 != 0" in output) == (failing == 0)
    ended, output = run(tmp_path, failing, {})
    assert ended == status, output
    assert "test_one[1]" not in output
    assert "test_one[2] PASSED" in output
    assert "test_one[3]" in output
    assert ("FAILED test_some.py::test_one[0] - on the host before" in output) == (failing == 0)


@pytest.mark.parametrize(("failing", "status"), [(9, 0), (3, 1)])
def test_a_host_that_ended_after_its_last_test_leaves_that_run_as_it_was(
    tmp_path: Path, failing: int, status: int
) -> None:
    assert run(tmp_path, failing, {})[0] == status
    ended, output = run(tmp_path, failing, {})
    assert ended == status, output


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Path("vmlinuz"), Path("/"), ["true"], tmp_path / "host", 1, threading.Event())


def ends(host: Host, monkeypatch: pytest.MonkeyPatch, outcomes: Iterator[str | int]) -> int:
    """How many hosts were started, of which each decides a test, or ends with a status."""
    started = 0

    def run_once(self: Host) -> int:
        nonlocal started
        started += 1
        (self.directory / "console.log").touch()
        outcome = next(outcomes)
        if isinstance(outcome, int):
            return outcome
        with self.outcomes.open("a") as file:
            file.write(outcome)
        return UNEXPECTED_END

    monkeypatch.setattr(Host, "_run_once", run_once)
    host.run()
    return started


def test_another_host_goes_on_as_long_as_hosts_get_further(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ends(host, monkeypatch, iter(["passed a\n", "passed b\n", "passed c\n", 0])) == 4


def test_the_second_host_in_a_row_that_gets_no_further_is_the_last(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = UNEXPECTED_END
    assert ends(host, monkeypatch, iter(["passed a\n", stuck, stuck, 0])) == 3
    assert ends(host, monkeypatch, iter(["passed a\n", stuck, "passed b\n", stuck, 0])) == 5


def test_hosts_that_all_end_early_are_not_started_for_ever(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = (f"passed {number}\n" for number in range(99))
    assert ends(host, monkeypatch, endless) == MAX_HOSTS
