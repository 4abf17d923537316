"""End-to-end tests: real microVMs by the real libkrun. Nothing here is ever skipped."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.framework.launch import Launcher, busybox_root
from tests.framework.paths import EXECUTABLE

# An overlay can't stand on another overlay, which /tmp of an emulated host is.
SCRATCH = Path("/dev/shm/krunclient-tests")


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(mode=0o755)
    yield SCRATCH
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def launcher(scratch: Path) -> Launcher:
    executable = scratch / "krunclient"
    shutil.copy2(EXECUTABLE, executable)
    cache = scratch / "cache"
    cache.mkdir(mode=0o700)
    # What the process manager gives, and no more.
    return Launcher(
        command=[executable],
        environment={
            "PATH": "/usr/bin:/bin",
            "XDG_CACHE_HOME": str(cache),
            "HOST": "example.test",
            "INTERNAL_SECRET": "s3cret",
        },
        directory=scratch,
    )


@pytest.fixture
def new_root(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Path]]:
    """Makes roots that hold busybox, and removes them after the test."""
    numbers = itertools.count()
    made: list[Path] = []

    def make(script: str | None = None) -> Path:
        directory = scratch / f"{request.node.name[:40]}-{next(numbers)}"
        made.append(directory)
        return busybox_root(directory, script)

    yield make
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def port() -> int:
    return next(PORTS)


PORTS = itertools.count(30001)
