"""Launches whose libkrun is the recording library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.framework import recorder
from tests.framework.launch import Ended, Launcher
from tests.framework.paths import TOP
from tests.framework.recorder import Recorded
from tests.framework.roots import static_root


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Path]]:
    directory = tmp_path_factory.mktemp("libraries")
    return {
        generation: recorder.build(directory, generation) for generation in recorder.GENERATIONS
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return static_root(tmp_path / "root")


@pytest.fixture
def record(tmp_path: Path, libraries: dict[int, tuple[Path, Path]], root: Path) -> Recorded:
    """Launch with the library of one generation: how it ended, and the calls that it made."""

    def launch(
        generation: int, *arguments: str, fail: str = "", env: dict[str, str] | None = None
    ) -> tuple[Ended, list[str]]:
        libkrun, libkrunfw = libraries[generation]
        calls = tmp_path / "calls"
        calls.write_text("")
        Path(f"{libkrun}.settings").write_text(f"{calls} 5 {fail}")
        # /dev/null stands in for a KVM that this machine may not have: nothing here needs one.
        launcher = Launcher(
            [sys.executable, "-m", "tests.framework.without_kvm"],
            {"PATH": "/usr/bin:/bin"},
            TOP,
        )
        ended = launcher.run(
            "--libkrun", libkrun, "--libkrunfw", libkrunfw, root, "30777", *arguments, env=env
        )
        lines = calls.read_text().splitlines()
        return ended, [line for line in lines if not line.startswith("entered ")]

    return launch
