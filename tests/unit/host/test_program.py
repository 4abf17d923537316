"""What the guest can't execute is found on the host, and what it can is taken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.errors import LaunchError, RootPathError
from krunclient.host import program
from target import MACHINE
from tests.framework.elf import elf
from tests.framework.stages import LIBC, OTHER_ARCHITECTURE

NOT_FOR_IT = f"not for the architecture {MACHINE}"


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    def write(path: str, content: bytes, mode: int = 0o755) -> Path:
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
        return target

    return write


def check(root: Path, *paths: str, machine: str = MACHINE) -> str:
    return program.find(LIBC, str(root), paths or ("/bin/app",), ARCHITECTURES[machine])


@pytest.mark.parametrize("content", [elf(), elf(interpreter="/lib/ld.so"), b"#!/bin/sh -e\n"])
def test_a_program_with_all_that_it_names_is_taken(
    tmp_path: Path, put: Callable[..., Path], content: bytes
) -> None:
    put("/bin/app", content)
    put("/bin/sh", elf(interpreter="/lib/ld.so"))
    put("/lib/ld.so", elf())
    check(tmp_path)


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (elf(machine=OTHER_ARCHITECTURE.elf_machine), 0o755, NOT_FOR_IT),
        (elf(bits=1), 0o755, NOT_FOR_IT),
        (elf(order=2), 0o755, NOT_FOR_IT),
        (elf(), 0o644, "not executable"),
        (elf(interpreter="/lib/ld.so"), 0o755, "interpreter /lib/ld.so does not exist"),
        (b"#!/bin/sh\n", 0o755, "interpreter /bin/sh does not exist"),
        (b"#!\n", 0o755, "empty #! line"),
        (b"#!/bin/app\n", 0o755, "nested too deep"),
        (b"", 0o755, "neither an ELF file nor a script"),
        (b"hello", 0o755, "neither an ELF file nor a script"),
        (b"#!/bin/sh\r\n", 0o755, "does not exist"),
        (elf()[:64], 0o755, "no whole ELF program"),
        (elf()[:100], 0o755, "no whole ELF program"),
        (elf()[:16] + b"\1" + elf()[17:], 0o755, "no whole ELF program"),
        (elf()[:54] + b"\xff\xff\xff\xff" + elf()[58:], 0o755, "no whole ELF program"),
    ],
)
def test_a_program_that_the_guest_cant_execute_is_refused(
    tmp_path: Path, put: Callable[..., Path], content: bytes, mode: int, why: str
) -> None:
    put("/bin/app", content, mode)
    with pytest.raises(RootPathError, match=why):
        check(tmp_path)


def test_the_other_architecture_takes_its_own(tmp_path: Path, put: Callable[..., Path]) -> None:
    put("/bin/app", elf(machine=OTHER_ARCHITECTURE.elf_machine))
    check(tmp_path, machine=OTHER_ARCHITECTURE.machine)


def test_links_are_followed_inside_the_root_alone(tmp_path: Path, put: Callable[..., Path]) -> None:
    put("/usr/bin/real", elf())
    (tmp_path / "bin").symlink_to("/usr/bin")
    (tmp_path / "usr/bin/app").symlink_to("../../../../../usr/bin/real")
    check(tmp_path)
    (tmp_path / "usr/bin/outside").symlink_to("/bin/true")
    with pytest.raises(RootPathError, match="does not exist"):
        check(tmp_path, "/bin/outside")
    (tmp_path / "usr/bin/loop").symlink_to("loop")
    with pytest.raises(RootPathError, match="symbolic links"):
        check(tmp_path, "/bin/loop")


def test_what_is_no_regular_file_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "bin/app").mkdir(parents=True)
    os.mkfifo(tmp_path / "bin/fifo")
    for path in ("/bin/app", "/bin/fifo"):
        with pytest.raises(RootPathError, match="no regular file"):
            check(tmp_path, path)


@pytest.mark.parametrize("root", ["missing", "file"])
def test_a_root_that_is_no_directory_is_refused(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RootPathError, match="ROOT_PATH can't be used"):
        check(tmp_path / root)


@given(st.binary(max_size=400))
def test_no_content_breaks_the_check(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.mktemp("root")
    for head in (b"", b"#!", elf()[:64], elf(interpreter="/x")[:100]):
        (root / "app").write_bytes(head + data)
        (root / "app").chmod(0o755)
        with contextlib.suppress(LaunchError):
            check(root, "/app")


DEFAULTS = ("/bin/app", "/app/bin/app")


def test_the_first_program_that_is_there_is_run(tmp_path: Path, put: Callable[..., Path]) -> None:
    put("/app/bin/app", elf())
    assert check(tmp_path, *DEFAULTS) == "/app/bin/app"
    put("/bin/app", elf())
    assert check(tmp_path, *DEFAULTS) == "/bin/app"
    with pytest.raises(RootPathError, match=r"/other in .* does not exist"):
        check(tmp_path, "/other")


def test_where_none_is_there_both_are_named(tmp_path: Path, put: Callable[..., Path]) -> None:
    with pytest.raises(RootPathError, match=r"/bin/app or /app/bin/app in .*: does not exist"):
        check(tmp_path, *DEFAULTS)
    put("/app", b"a file in the way")
    with pytest.raises(RootPathError, match=r"/bin/app or /app/bin/app in .*: does not exist"):
        check(tmp_path, *DEFAULTS)


def test_one_that_is_there_and_cant_be_run_is_not_passed_over(
    tmp_path: Path, put: Callable[..., Path]
) -> None:
    put("/app/bin/app", elf())
    put("/bin/app", elf(), mode=0o644)
    with pytest.raises(RootPathError, match=r"/bin/app in .*: is not executable"):
        check(tmp_path, *DEFAULTS)
