"""Launches whose libkrun is the recording library."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.framework import recorder
from tests.framework.fake_vmm import WITHOUT_KVM
from tests.framework.launch import Ended
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
        ended = WITHOUT_KVM.run(
            "--libkrun", libkrun, "--libkrunfw", libkrunfw, root, "30777", *arguments, env=env
        )
        lines = calls.read_text().splitlines()
        return ended, [line for line in lines if not line.startswith("entered ")]

    return launch
