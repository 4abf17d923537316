"""The executable as users start it, on a host where nothing needs a VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.framework.elf import elf
from tests.framework.launch import Launcher
from tests.framework.paths import EXECUTABLE


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    cache = tmp_path_factory.mktemp("cache")
    cache.chmod(0o700)
    launcher = Launcher(
        [EXECUTABLE],
        {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache)},
        tmp_path_factory.mktemp("directory"),
    )
    assert launcher.run("--version").status == 0  # the first start extracts
    return launcher


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a static program."""
    return make_root(tmp_path / "root")


def make_root(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "bin/app").write_bytes(elf())
    (root / "bin/app").chmod(0o755)
    return root
