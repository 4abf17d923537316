"""Launches side by side, each ended in its own way, and nothing left of any."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.soak import soak

LAUNCHES = 20


@pytest.mark.timeout(900)
def test_no_launch_fails_and_none_leaves_anything() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="krunclient-soak-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        results = soak.soak(soak.real_place(directory), LAUNCHES, parallel=2, seed=1)
    print(soak.report(results))
    assert results.launches == LAUNCHES
    assert results.failures.total() == 0
