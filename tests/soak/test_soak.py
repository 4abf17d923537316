"""Many launches with a VMM of a few lines of C: none fails, none leaves anything."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.framework.launch import STOP_SIGNALS, ignore_stops
from tests.soak import soak
from tests.soak.soak import Launch, Results


@pytest.mark.timeout(300)
def test_killed_and_stopped_at_random_moments_nothing_is_left() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="krunclient-soak-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        results = soak.soak(soak.recorded_place(directory), 250, parallel=4, seed=1)
    assert results.launches == 250
    assert results.failures.total() == 0
    killed = sum(n for outcome, n in results.outcomes.items() if outcome.startswith("SIGKILL"))
    assert killed >= 25


def test_the_bound_on_the_failure_rate_is_the_binomial_one() -> None:
    assert soak.failure_rate_bound(0, 1000) == pytest.approx(0.00299, abs=1e-5)  # rule of three
    assert soak.failure_rate_bound(1, 1000) == pytest.approx(0.00474, abs=1e-5)


def test_what_goes_wrong_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_launch: Launch) -> str:
        raise soak.UnexpectedError("it broke")

    monkeypatch.setattr(Launch, "run", fail)
    monkeypatch.setattr(soak, "leftovers", lambda _place: set())
    results: Results = soak.soak(None, 3, parallel=1, seed=1)  # type: ignore[arg-type]
    assert dict(results.failures) == {"it broke": 3}
    assert "FAILURE: it broke | 3" in soak.report(results)


def test_a_launch_hears_each_stop_from_its_first_moment_though_a_shell_had_us_ignore_it() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    ignore_stops()
    try:
        with soak.no_stop_ignored():
            for number in STOP_SIGNALS:
                process = subprocess.Popen(["sleep", "60"])
                process.send_signal(number)
                assert process.wait(10) == -number
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in STOP_SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
