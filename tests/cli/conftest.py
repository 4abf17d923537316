"""The executable as users start it, on a host where nothing needs a VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.framework.launch import Launcher
from tests.framework.paths import EXECUTABLE
from tests.framework.roots import static_root


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
    return static_root(tmp_path / "root")
