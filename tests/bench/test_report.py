"""What the benchmark says of its goals."""

from __future__ import annotations

from tests.bench import report


def test_a_goal_that_is_missed_is_named() -> None:
    start = {"bare Python": 10.0, "C": 1.0, "krunclient": 26.0, "krunclient --sandbox off": 20.0}
    results = {
        "start, ms": start,
        "first start, ms": 100.0,
        "executable, MiB": 10.0,
        "root file system, MiB": 9.0,
    }
    assert report.missed(results, margin=1) == [
        "start: krunclient to bare Python is 2.60, and may be 2.5",
        "root file system, MiB is 9.00, and may be 8",
    ]
    assert report.missed(results, margin=1.2) == []
