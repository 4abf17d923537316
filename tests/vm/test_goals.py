"""The short form of the benchmark: krunclient stays as fast and as small as its goals say."""

from __future__ import annotations

import pytest

from tests.bench import bench, report

# For the noise of a machine under load, and of fewer runs.
MARGIN = 1.2


@pytest.mark.timeout(900)
def test_every_goal_is_met_within_a_margin_for_noise() -> None:
    results = bench.measure(bench.SHORT)
    print(report.table(results))
    assert report.missed(results, MARGIN) == []
