"""The root file system holds what libkrun's init and Go programs need, and is small."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from krunclient.bindings.arch import ARCHITECTURES
from target import ARCHITECTURE
from tests.framework.paths import ROOTFS, SCRIPTS, TOP

MAX_BYTES = 8 * 2**20


def test_it_is_small() -> None:
    sizes = [path.lstat().st_size for path in ROOTFS.rglob("*") if not path.is_dir()]
    assert 10**6 < sum(sizes) < MAX_BYTES


@pytest.mark.parametrize(
    "name", ["bin", "dev", "proc", "sys", "tmp", "root", "run", "etc", "var/tmp", "lib"]
)
def test_the_directories_that_a_read_only_boot_needs_are_there(name: str) -> None:
    assert (ROOTFS / name).is_dir()


def test_the_internal_host_has_an_address() -> None:
    lines = (ROOTFS / "etc/hosts").read_text().splitlines()
    assert "127.0.0.1\tinternal.yesterday.localhost" in lines


def test_it_holds_certificates() -> None:
    bundle = (ROOTFS / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert bundle.count("BEGIN CERTIFICATE") == bundle.count("END CERTIFICATE") > 50


def test_a_dynamic_program_finds_every_library_in_it(tmp_path: Path) -> None:
    program = tmp_path / "program"
    source = "#include <netdb.h>\n#include <math.h>\n#include <pthread.h>\n"
    source += "int main(int c, char **v) { return getaddrinfo(v[0], 0, 0, 0) + sin(c) > 9; }"
    subprocess.run(
        ["gcc", "-x", "c", "-", "-o", program, "-lm", "-lresolv", "-lpthread"],
        input=source,
        text=True,
        check=True,
    )
    loader, directory = ROOTFS / ARCHITECTURE.loader, ROOTFS / ARCHITECTURE.library_directory
    subprocess.run([loader, "--library-path", directory, program], check=True)


def test_that_of_another_architecture_is_for_it_alone() -> None:
    foreign = next(one for one in ARCHITECTURES.values() if one is not ARCHITECTURE)
    environment = {**os.environ, "TARGET_MACHINE": foreign.machine}
    command = [sys.executable, str(SCRIPTS / "rootfs.py")]
    made = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    root = TOP / made.stdout.partition(":")[0]
    assert root != ROOTFS
    loader = root / foreign.loader
    assert loader.resolve().is_relative_to(root / foreign.library_directory)
    libraries = [path for path in root.rglob("*.so*") if not path.is_symlink()]
    assert {path.name for path in libraries} >= {"libc.so.6", loader.name}
    for path in libraries:
        assert path.read_bytes()[18:20] == struct.pack("<H", foreign.elf_machine), path
    here = {str(path.relative_to(ROOTFS)) for path in ROOTFS.rglob("*") if path.is_file()}
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert {name for name in here if "ld-linux" not in name} == {
        name.replace(foreign.library_directory, ARCHITECTURE.library_directory)
        for name in there
        if "ld-linux" not in name
    }
