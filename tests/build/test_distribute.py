"""Distribution adds what is missing, replaces what is outdated, and leaves the app's own alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distribute import distribute, make_package
from tests.framework import paths, recorder
from tests.framework.elf import elf


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


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_record_is_none(rootfs: Path, app: Path, text: str) -> None:
    (app / ".krunclient-rootfs.json").write_text(text)
    assert distribute(rootfs, app)[0] == ["etc/hosts", "etc/link"]
    assert distribute(rootfs, app) == ([], [])


def test_no_link_of_an_app_leads_the_record_out(rootfs: Path, app: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside\n")
    for name in (".krunclient-rootfs.tmp", ".krunclient-rootfs.json"):
        (app / name).symlink_to(tmp_path / "outside")
    distribute(rootfs, app)
    assert (tmp_path / "outside").read_text() == "outside\n"


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


def test_a_package_that_is_zipped_and_unpacked_without_links_can_be_run(tmp_path: Path) -> None:
    """Zipped by `zip -r`, and unpacked as NexusHub does it: by archive/zip of Go."""
    package, unpacked = tmp_path / "package", tmp_path / "unpacked"
    package.mkdir()
    added, kept = make_package(paths.ROOTFS, paths.EXECUTABLE, package)
    assert "bin/krunclient" in added
    assert kept == []
    assert make_package(paths.ROOTFS, paths.EXECUTABLE, package) == ([], [])
    shutil.make_archive(str(package), "zip", package)
    with zipfile.ZipFile(f"{package}.zip") as archive:
        for entry in archive.infolist():
            archive.extract(entry, unpacked)
            (unpacked / entry.filename).chmod((entry.external_attr >> 16) & 0o777)
    for path in paths.ROOTFS.rglob("*"):
        there = unpacked / path.relative_to(paths.ROOTFS)
        assert not there.is_symlink()
        assert there.is_dir() if path.is_dir() else there.read_bytes() == path.read_bytes()
    (unpacked / "app/bin").mkdir(parents=True)
    (unpacked / "app/bin/app").write_bytes(elf())
    (unpacked / "app/bin/app").chmod(0o755)
    version = subprocess.run([unpacked / "bin/krunclient", "--version"], capture_output=True)
    assert version.stdout.startswith(b"krunclient ")
    libkrun, libkrunfw = recorder.build(tmp_path, recorder.NEWEST)
    pair = [f"--libkrun={libkrun}", f"--libkrunfw={libkrunfw}"]
    words = ["--plan", *pair, str(unpacked), "30000"]
    command = [sys.executable, "-m", "tests.framework.without_kvm", *words]
    plan = subprocess.run(command, cwd=paths.TOP, capture_output=True, check=True)
    assert json.loads(plan.stdout)["exec_path"] == "/app/bin/app"


def test_a_package_keeps_what_is_not_ours_and_is_not_left_by_a_link(
    tmp_path: Path, rootfs: Path
) -> None:
    executable, elsewhere, package = (
        tmp_path / name for name in ("krunclient", "elsewhere", "package")
    )
    executable.write_text("new\n")
    elsewhere.mkdir(mode=0o700)
    (package / "etc").mkdir(parents=True)
    (package / "etc/hosts").write_text("own\n")
    (package / "tmp").symlink_to(elsewhere)
    (rootfs / "bin").mkdir()
    added, kept = make_package(rootfs, executable, package)
    assert (added, kept) == (["etc/link", "bin/krunclient"], ["etc/hosts"])
    assert (package / "etc/hosts").read_text() == "own\n"
    assert elsewhere.stat().st_mode & 0o7777 == 0o700
    shutil.rmtree(package / "bin")
    (package / "bin").symlink_to(elsewhere)
    with pytest.raises(SystemExit, match="leads out of"):
        make_package(rootfs, executable, package)
    assert list(elsewhere.iterdir()) == []
