"""The short form of the benchmark: krunclient stays as fast and as small as its goals say."""

from __future__ import annotations

import pytest

from tests.bench import bench, report

# For the noise of a machine under load, and of fewer runs.
MARGIN = 1.2
# What else such a machine does comes and goes, and can slow one of two launchers for a minute.
MEASUREMENTS = 3


@pytest.mark.timeout(1800)
def test_every_goal_is_met_within_a_margin_for_noise() -> None:
    for _ in range(MEASUREMENTS):
        results = bench.measure(bench.SHORT)
        print(report.table(results))
        missed = report.missed(results, MARGIN)
        if not missed:
            return
    pytest.fail(f"missed in each of {MEASUREMENTS} measurements, in the last one: {missed}")
