"""The root file system holds what libkrun's init and Go programs need, and is small."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.framework.paths import ROOTFS

MAX_BYTES = 8 * 2**20


def test_it_is_small() -> None:
    sizes = [path.lstat().st_size for path in ROOTFS.rglob("*") if not path.is_dir()]
    assert 10**6 < sum(sizes) < MAX_BYTES


@pytest.mark.parametrize(
    "name", ["bin", "dev", "proc", "sys", "tmp", "root", "run", "etc", "var/tmp", "lib64"]
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
    loader = ROOTFS / "lib64/ld-linux-x86-64.so.2"
    directory = ROOTFS / "lib/x86_64-linux-gnu"
    subprocess.run([loader, "--library-path", directory, program], check=True)
