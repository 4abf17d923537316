"""A name that is allowed is in the guest's /etc/hosts, beside what the root has there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.framework import fake_vmm
from tests.framework.launch import Launcher

PORT = "30783"
SHOW_HOSTS = """
    char text[4096];
    int file = open("/guest/etc/hosts", O_RDONLY);
    long size = read(file, text, sizeof(text));
    if (write(6, text, size > 0 ? size : 0) < 0) _exit(94);
"""
CHANGE_HOSTS = """
    int changed = open("/guest/etc/hosts", O_WRONLY | O_TRUNC);
    if (write(changed, "own\\n", 4) != 4) _exit(93);
"""


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Launcher, list[str | Path], Path]:
    launcher, arguments = fake_vmm.prepare(tmp_path, SHOW_HOSTS)
    return launcher, arguments, tmp_path / "root"


def hosts(prepared: tuple[Launcher, list[str | Path], Path], *options: str) -> list[str]:
    launcher, arguments, _ = prepared
    ended = launcher.run(*arguments, PORT, *options)
    assert ended.status == fake_vmm.STATUS, ended
    return ended.stderr.decode().splitlines()


def test_a_name_stands_behind_what_the_root_has(
    prepared: tuple[Launcher, list[str | Path], Path],
) -> None:
    root = prepared[2]
    assert "127.0.0.1\tlocalhost" in hosts(prepared, "--allow=localhost:80")  # it has no /etc
    (root / "etc").mkdir(mode=0o750)
    (root / "etc/hosts").write_text("192.0.2.1 own")
    (root / "etc/other").write_text("other")
    first, *rest = hosts(prepared, "--allow=localhost:80")
    assert first == "192.0.2.1 own"
    assert "127.0.0.1\tlocalhost" in rest
    assert hosts(prepared, "--allow=127.0.0.1:80") == ["192.0.2.1 own"]
    assert (root / "etc/hosts").read_text() == "192.0.2.1 own"


def test_no_link_of_the_root_leads_to_a_file_of_the_hosts(
    prepared: tuple[Launcher, list[str | Path], Path], tmp_path: Path
) -> None:
    launcher, arguments, root = prepared
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("of the host\n")
    (root / "etc").mkdir()
    (root / "etc/hosts").symlink_to(outside / "hosts")
    assert "of the host" not in hosts(prepared, "--allow=localhost:80")
    (root / "etc/hosts").unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to(outside)
    ended = launcher.run(*arguments, PORT, "--allow=localhost:80")
    assert ended.status == 69
    assert "HostsFile" in ended.error


def test_the_guest_may_change_its_hosts_and_an_overlay_keeps_that_alone(
    tmp_path: Path,
) -> None:
    overlay = tmp_path / "overlay"
    launcher, arguments = fake_vmm.prepare(tmp_path, SHOW_HOSTS)
    options = ["--allow=localhost:80", f"--overlay={overlay}"]
    assert launcher.run(*arguments, PORT, *options).status == fake_vmm.STATUS
    assert os.listdir(overlay / "upper") == []
    launcher, arguments = fake_vmm.prepare(tmp_path, CHANGE_HOSTS)
    assert launcher.run(*arguments, PORT, *options).status == fake_vmm.STATUS
    assert (overlay / "upper/etc/hosts").read_text() == "own\n"
