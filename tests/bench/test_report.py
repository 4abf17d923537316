"""What the benchmark says of its goals."""

from __future__ import annotations

from typing import Any

from tests.bench import report

RESULTS: dict[str, Any] = {
    "processors": 2,
    "start, ms": {"bare Python": 10},
    "start, in bare Pythons": {"C": 0.1, "krunclient": 2.1, "krunclient --sandbox off": 1.9},
    "start, processor time in bare Pythons": {"krunclient": 2.4},
    "first start, ms": 100,
    "executable, MiB": 10,
    "root file system, MiB": 4,
}


def load(requests: list[int]) -> list[dict[str, float]]:
    """One run for each of these numbers of requests per second, and the same of all else."""
    return [{"requests/s": one, "median ms": 80, "99% ms": 200, "MiB/s": 10} for one in requests]


def test_results_that_meet_every_goal_miss_none() -> None:
    assert report.missed(RESULTS, margin=1) == []


def test_a_goal_that_is_missed_is_named() -> None:
    start = {**RESULTS["start, in bare Pythons"], "krunclient": 2.6}
    results = {**RESULTS, "start, in bare Pythons": start, "root file system, MiB": 9}
    assert report.missed(results, margin=1) == [
        "start: krunclient to bare Python is 2.60, and may be 2.2",
        "root file system, MiB is 9.00, and may be 8",
    ]
    assert report.missed(results, margin=1.2) == []


def test_one_processor_may_take_longer_for_a_first_start() -> None:
    results = {**RESULTS, "first start, ms": 200}
    assert report.missed(results, margin=1) == [
        "first start: to bare Python is 20.00, and may be 15"
    ]
    assert report.missed({**results, "processors": 1}, margin=1) == []


def test_a_first_answer_is_compared_in_bare_pythons_of_the_same_place() -> None:
    seconds = {"bare Python": 300, "C": 3000, "krunclient": 3800}
    assert report.missed({**RESULTS, "first answer, ms": seconds}, margin=1) == []
    slower = {**seconds, "krunclient": 4200}
    assert report.missed({**RESULTS, "first answer, ms": slower}, margin=1) == [
        "first answer: later than C, in bare Pythons is 4.00, and may be 3",
    ]


def test_load_may_differ_from_c_by_as_much_as_two_runs_of_c() -> None:
    requests = {"C": load([100] * 3), "krunclient": load([95] * 3), "C again": load([94] * 3)}
    assert report.missed({**RESULTS, "load": requests}, margin=1) == []


def test_load_that_is_worse_than_c_by_more_than_that_is_named() -> None:
    requests = {"C": load([100] * 3), "krunclient": load([95] * 3), "C again": load([99] * 3)}
    assert report.missed({**RESULTS, "load": requests}, margin=1) == [
        "requests/s: worse than C by is 0.05, and may be 0.02",
    ]


def test_load_that_is_better_than_c_misses_nothing() -> None:
    better = load([110] * 3)
    requests = {"C": load([100] * 3), "krunclient": better, "C again": load([100] * 3)}
    assert report.missed({**RESULTS, "load": requests}, margin=1) == []
