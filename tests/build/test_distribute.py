"""Distribution adds what is missing, replaces what is outdated, and leaves the app's own alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from distribute import distribute
from tests.framework import paths  # noqa: F401, makes dist-scripts importable


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/tmp").mkdir()
    (tmp_path / "rootfs/tmp").chmod(0o1777)
    (tmp_path / "rootfs/etc/hosts").write_text("first\n")
    (tmp_path / "rootfs/etc/link").symlink_to("hosts")
    return tmp_path / "rootfs"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app/bin").mkdir(parents=True)
    (tmp_path / "app/bin/app").write_text("the app\n")
    return tmp_path / "app"


def test_what_is_missing_is_added(rootfs: Path, app: Path) -> None:
    assert distribute(rootfs, app) == (["etc/hosts", "etc/link"], [])
    assert (app / "etc/hosts").read_text() == "first\n"
    assert (app / "etc/link").readlink() == Path("hosts")
    assert (app / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (app / "bin/app").read_text() == "the app\n"


def test_a_second_run_changes_nothing(rootfs: Path, app: Path) -> None:
    distribute(rootfs, app)
    assert distribute(rootfs, app) == ([], [])


def test_what_is_outdated_is_replaced(rootfs: Path, app: Path) -> None:
    distribute(rootfs, app)
    (rootfs / "etc/hosts").write_text("second\n")
    assert distribute(rootfs, app) == (["etc/hosts"], [])
    assert (app / "etc/hosts").read_text() == "second\n"


def test_the_apps_own_file_is_kept_and_named(rootfs: Path, app: Path) -> None:
    (app / "etc").mkdir()
    (app / "etc/hosts").write_text("own\n")
    assert distribute(rootfs, app) == (["etc/link"], ["etc/hosts"])
    assert (app / "etc/hosts").read_text() == "own\n"


def test_a_file_of_ours_that_the_app_changed_is_its_own_from_then_on(
    rootfs: Path, app: Path
) -> None:
    distribute(rootfs, app)
    (app / "etc/hosts").write_text("changed\n")
    (rootfs / "etc/hosts").write_text("second\n")
    assert distribute(rootfs, app) == ([], ["etc/hosts"])


def test_a_link_out_of_the_app_directory_is_not_followed(
    rootfs: Path, app: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (app / "etc").symlink_to(tmp_path / "outside")
    with pytest.raises(SystemExit, match="leads out of"):
        distribute(rootfs, app)
    assert not list((tmp_path / "outside").iterdir())
