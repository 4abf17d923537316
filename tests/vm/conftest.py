"""End-to-end tests: real microVMs by the real libkrun. Nothing here is ever skipped."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework import guests
from tests.framework.launch import Launcher, Server
from tests.framework.paths import EXECUTABLE
from tests.framework.ports import next_port
from tests.framework.roots import HTTPD, busybox_root, open_to
from tests.framework.users import USER

BOOT_SECONDS = 0.5  # with KVM, and some
# Another pair than the bundled one: KRUNCLIENT_LIBKRUN=/... dist-scripts/nox -s vm
LIBRARIES = ("KRUNCLIENT_LIBKRUN", "KRUNCLIENT_LIBKRUNFW")
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
            **{name: os.environ[name] for name in LIBRARIES if name in os.environ},
        },
        directory=scratch,
    )


@pytest.fixture(scope="session")
def slowness(launcher: Launcher, scratch: Path) -> float:
    """How many times as long as on a machine with KVM of its own a VM takes here, at least 1."""
    brief = busybox_root(scratch / "brief", "exit 0")
    seconds = max(launcher.run(brief, str(next_port())).seconds for _ in range(2))
    return max(1.0, seconds / BOOT_SECONDS)


@pytest.fixture(scope="session", params=["root", "user"])
def any_launcher(
    launcher: Launcher, users_launcher: Launcher, request: pytest.FixtureRequest
) -> Launcher:
    """krunclient started as root, and as a user who is nobody special."""
    return launcher if request.param == "root" else users_launcher


@pytest.fixture(scope="session")
def users_launcher(launcher: Launcher, scratch: Path) -> Launcher:
    cache = scratch / "user-cache"
    if not cache.exists():
        cache.mkdir(mode=0o700)
        os.chown(cache, USER, USER)
    environment = {**launcher.environment, "XDG_CACHE_HOME": str(cache)}
    return replace(launcher, environment=environment, user=USER)


@pytest.fixture(scope="session")
def passt(scratch: Path) -> Path:
    """Where every user can run it."""
    return Path(shutil.copytree(guests.PASST.parent, scratch / "passt"), guests.PASST.name)


def with_passt(launcher: Launcher, passt: Path) -> Launcher:
    settings = {"KRUNCLIENT_NETWORK": "passt", "KRUNCLIENT_PASST": str(passt)}
    return replace(launcher, environment={**launcher.environment, **settings})


@pytest.fixture(scope="session")
def behind_passt(any_launcher: Launcher, passt: Path) -> Launcher:
    return with_passt(any_launcher, passt)


@pytest.fixture(scope="session")
def users_behind_passt(users_launcher: Launcher, passt: Path) -> Launcher:
    return with_passt(users_launcher, passt)


@pytest.fixture(scope="session", params=["tsi", "passt"])
def any_network(launcher: Launcher, passt: Path, request: pytest.FixtureRequest) -> Launcher:
    return launcher if request.param == "tsi" else with_passt(launcher, passt)


@pytest.fixture(scope="session")
def neighbour(launcher: Launcher, scratch: Path) -> Iterator[Server]:
    """A VM beside those of the tests, which none of them may harm."""
    root = busybox_root(scratch / "neighbour", HTTPD)
    with launcher.serve(root, next_port()) as server:
        yield server


@pytest.fixture
def new_root(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Path]]:
    """Makes roots that hold busybox, and removes them after the test."""
    numbers = itertools.count()
    made: list[Path] = []

    def make(script: str | None = None) -> Path:
        directory = scratch / f"{request.node.name[:40]}-{next(numbers)}"
        made.append(directory)
        root = busybox_root(directory, script)
        if "any_launcher" in request.fixturenames:
            is_users = request.node.callspec.params["any_launcher"] == "user"
        else:
            is_users = "users_launcher" in request.fixturenames
        if is_users:
            open_to(USER, root)
        return root

    yield make
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def port() -> int:
    return next_port()
