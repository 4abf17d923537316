"""Where passt is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.errors import HostError
from krunclient.host import passt
from tests.framework.stages import settings


def program(directory: Path, mode: int = 0o755) -> str:
    directory.mkdir()
    path = directory / "passt"
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_the_first_that_can_be_executed_is_found(tmp_path: Path) -> None:
    not_executable = program(tmp_path / "a", 0o644)
    first, second = program(tmp_path / "b"), program(tmp_path / "c")
    search = f"{tmp_path}/none:relative::{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"
    assert passt.find(None, search) == first
    assert passt.find(second, search) == second
    with pytest.raises(HostError, match="it can't be read and executed"):
        passt.find(not_executable, search)
    with pytest.raises(HostError, match="/none: no such file or directory"):
        passt.find(f"{tmp_path}/none", search)


def test_none_in_the_search_path_or_in_the_working_directory_is_69(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(HostError, match="install the package passt"):
        passt.find(None, ".:")


@pytest.mark.parametrize(
    ("options", "vmm_uid", "mapped", "uid"),
    [((), 0, True, 65534), ((), 1000, True, None), ((), 0, False, None)],
)
def test_passt_is_never_the_hosts_root(
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    vmm_uid: int,
    mapped: bool,
    uid: int | None,
) -> None:
    monkeypatch.setattr(passt, "_is_mapped", lambda _uid: mapped)
    monkeypatch.setattr(passt, "find_guest_program", lambda _architecture: "/program")
    architecture = ARCHITECTURES["x86_64"]
    found = passt.programs(settings("--passt=/bin/sh", *options), architecture, vmm_uid)
    assert (found.user and found.user.uid) == uid


def test_who_is_mapped_is_read_from_the_kernel() -> None:
    assert passt._is_mapped(0)
    assert not passt._is_mapped(2**32 - 1)


def test_a_copy_without_the_guests_program_is_69() -> None:
    with pytest.raises(HostError, match="guest-network"):
        passt.find_guest_program(ARCHITECTURES["x86_64"])
