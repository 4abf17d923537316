"""The pair that is loaded: what was given, else the bundled pair, else the system's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from krunclient.bindings import libkrun
from krunclient.errors import HostError
from krunclient.host import libraries
from krunclient.model import Features
from target import ARCHITECTURE, MACHINE, SITE_PACKAGES
from tests.framework import recorder
from tests.framework.stages import LIBC, OTHER_ARCHITECTURE


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return recorder.build(tmp_path_factory.mktemp("pair"), recorder.NEWEST)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose only place for libraries is an empty directory, without a bundled pair."""
    monkeypatch.setattr(libraries, "PACKAGE", str(tmp_path))
    monkeypatch.setattr(libraries, "system_directories", lambda _: (str(tmp_path / "lib"),))
    (tmp_path / "lib").mkdir()
    return tmp_path


def put(pair: tuple[Path, Path], directory: Path, libkrun: str, libkrunfw: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / libkrun).hardlink_to(pair[0])
    (directory / libkrunfw).hardlink_to(pair[1])


def test_without_any_it_is_said_where_they_were_looked_for(host: Path) -> None:
    with pytest.raises(HostError, match=f"{host}/lib: there is none, nor one bundled"):
        libraries.find(None, None, ARCHITECTURE)


def test_an_executable_for_another_architecture_says_which_to_take(
    host: Path, pair: tuple[Path, Path]
) -> None:
    put(pair, host / "bundled" / MACHINE, "libkrun.so", "libkrunfw.so")
    with pytest.raises(HostError) as raised:
        libraries.find(None, None, OTHER_ARCHITECTURE)
    advice = f"take the krunclient for {OTHER_ARCHITECTURE.machine}"
    assert f"the bundled one is for {MACHINE}; {advice}" in str(raised.value)
    assert libraries.find(None, None, ARCHITECTURE).libkrun_origin == "bundled"


def test_the_bundled_pair_comes_before_the_systems(host: Path, pair: tuple[Path, Path]) -> None:
    put(pair, host / "lib", "libkrun.so.1", "libkrunfw.so.5")
    found = libraries.find(None, None, ARCHITECTURE)
    assert (found.libkrun_origin, found.libkrunfw_origin) == ("system", "system")
    assert (found.libkrun, found.libkrunfw) == (
        f"{host}/lib/libkrun.so.1",
        f"{host}/lib/libkrunfw.so.5",
    )
    put(pair, host / "bundled" / MACHINE, "libkrun.so", "libkrunfw.so")
    found = libraries.find(None, None, ARCHITECTURE)
    assert (found.libkrun_origin, found.libkrunfw_origin) == ("bundled", "bundled")
    assert found.libkrunfw == f"{host}/bundled/{MACHINE}/libkrunfw.so"
    # Each architecture has a pair of its own.
    with pytest.raises(HostError, match=f"no library for {OTHER_ARCHITECTURE.machine}"):
        libraries.find(None, None, OTHER_ARCHITECTURE)


def test_what_is_given_comes_before_all(host: Path, pair: tuple[Path, Path]) -> None:
    put(pair, host / "bundled" / MACHINE, "libkrun.so", "libkrunfw.so")
    found = libraries.find(str(pair[0]), str(pair[1]), ARCHITECTURE)
    assert (found.libkrun, found.libkrunfw) == (str(pair[0]), str(pair[1]))
    assert (found.libkrun_origin, found.libkrunfw_origin) == ("given", "given")
    mixed = libraries.find(str(pair[0]), None, ARCHITECTURE)
    assert mixed.libkrunfw.startswith(str(host))
    assert (mixed.libkrun_origin, mixed.libkrunfw_origin) == ("given", "bundled")
    mixed = libraries.find(None, str(pair[1]), ARCHITECTURE)
    assert mixed.libkrun.startswith(str(host))
    assert (mixed.libkrun_origin, mixed.libkrunfw_origin) == ("bundled", "given")


def test_a_libkrunfw_is_looked_for_beside_its_libkrun(host: Path, pair: tuple[Path, Path]) -> None:
    found = libraries.find(str(pair[0]), None, ARCHITECTURE)
    assert (found.libkrunfw, found.libkrunfw_origin) == (str(pair[1]), "beside libkrun")
    put(pair, host / "alone", "libkrun.so", "other")
    looked = rf"and it is not in {host}/alone {host}/lib;"
    with pytest.raises(HostError, match=rf"libkrunfw was not found: libkrunfw\.so\.5: .* {looked}"):
        libraries.find(f"{host}/alone/libkrun.so", None, ARCHITECTURE)


@pytest.mark.parametrize("generation", recorder.GENERATIONS)
def test_what_a_libkrun_can_do_is_read_without_loading_it(tmp_path: Path, generation: int) -> None:
    path, libkrunfw = recorder.build(tmp_path, generation)
    read = libraries.read_features(str(path), ARCHITECTURE)
    loaded = libkrun.load(LIBC, str(path), str(libkrunfw))
    assert read == Features.of(loaded.has)


@pytest.mark.parametrize("generation", recorder.GENERATIONS)
def test_which_init_a_libkrun_has_is_told_by_its_bytes(tmp_path: Path, generation: int) -> None:
    path, libkrunfw = recorder.build(tmp_path, generation)
    init = libraries.find(str(path), str(libkrunfw), ARCHITECTURE).init
    # Not by krun_set_root, which upstream's newest have as well.
    assert init == ("C" if generation < 120 else "Rust")


def test_the_bundled_libkruns_init_is_what_is_said_of_it() -> None:
    bundled = SITE_PACKAGES / "krunclient/bundled" / MACHINE / "libkrun.so"
    assert libraries.read_init(str(bundled)) == libraries.BUNDLED_INIT


def test_a_libkrun_whose_init_cant_be_told_is_refused(tmp_path: Path) -> None:
    for init in ("another", "serde_json"):
        path, libkrunfw = recorder.build(tmp_path, recorder.NEWEST, "", f'-DINIT="{init}"')
        with pytest.raises(HostError, match="the init inside it is none that krunclient knows"):
            libraries.find(str(path), str(libkrunfw), ARCHITECTURE)


def test_a_libkrun_that_cant_tell_the_apps_status_is_refused(tmp_path: Path) -> None:
    path, libkrunfw = recorder.build(tmp_path, recorder.TOO_OLD)
    with pytest.raises(HostError, match=r"use libkrun 1\.13 or later, or the bundled one"):
        libraries.find(str(path), str(libkrunfw), ARCHITECTURE)


@pytest.mark.parametrize("content", [b"", b"text", b"libkrunfw.so.5\0", b"\x7fELF\x02\x01"])
def test_what_is_no_library_is_refused(
    tmp_path: Path, pair: tuple[Path, Path], content: bytes
) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    with pytest.raises(HostError, match=f"libkrun can't be used: .* no library for {MACHINE}"):
        libraries.find(str(path), None, ARCHITECTURE)
    with pytest.raises(HostError, match=f"libkrunfw can't be used: .* no library for {MACHINE}"):
        libraries.find(str(pair[0]), str(path), ARCHITECTURE)


def test_a_library_that_is_cut_off_is_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for number, name in enumerate(("libkrun", "libkrunfw")):
        whole = pair[number].read_bytes()
        given = {"libkrun": str(pair[0]), "libkrunfw": str(pair[1])} | {name: str(tmp_path / name)}
        Path(given[name]).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(HostError, match=f"{name} can't be used: .* its end is missing"):
            libraries.find(**given, architecture=ARCHITECTURE)
        Path(given[name]).write_bytes(whole)
        assert libraries.find(**given, architecture=ARCHITECTURE)


def test_a_path_that_is_no_file_is_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing"):
        is_missing = path.name == "missing"
        why = "no such file or directory" if is_missing else "it is no regular file"
        with pytest.raises(HostError, match=why):
            libraries.find(str(path), None, ARCHITECTURE)
        with pytest.raises(HostError, match=why):
            libraries.find(None, str(path), ARCHITECTURE)
