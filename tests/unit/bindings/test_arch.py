"""The architectures' tables are whole, and agree with each other and with this machine."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from krunclient.bindings.arch import ARCHITECTURES, Architecture
from krunclient.bindings.libc import Libc
from krunclient.sandbox import seccomp

EACH = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
HERE = ARCHITECTURES[os.uname().machine]


@EACH
def test_each_knows_every_system_call_or_says_that_it_lacks_it(architecture: Architecture) -> None:
    everything = set().union(*(one.syscalls for one in ARCHITECTURES.values()))
    assert set(architecture.syscalls) == everything
    numbers = [number for number in architecture.syscalls.values() if number is not None]
    assert len(numbers) == len(set(numbers))


@EACH
def test_each_has_what_the_bindings_call_and_what_the_filter_supervises(
    architecture: Architecture,
) -> None:
    called = {name for name, declared in Libc.functions().items() if declared.syscall}
    assert called
    for name in (*called, *seccomp.SUPERVISED):
        assert architecture.syscalls[name] is not None


def test_the_numbers_here_are_those_of_the_systems_headers() -> None:
    source = "#include <sys/syscall.h>\n"
    defines = subprocess.run(
        ["gcc", "-E", "-dM", "-"], input=source, capture_output=True, text=True, check=True
    ).stdout
    values = dict(re.findall(r"#define __NR(\w+) (?:__NR)?(\w+)", defines))
    # Some names stand for others.
    found = {name[1:]: values.get(value, value) for name, value in values.items()}
    for name, number in HERE.syscalls.items():
        # Headers may be older than the newest calls.
        if name in found or (number or 0) < 400:
            assert found.get(name) == (None if number is None else str(number)), name


def test_this_machines_libraries_are_where_its_table_says() -> None:
    assert os.path.exists(f"/{HERE.loader}")
    assert os.path.isdir(f"/usr/{HERE.library_directory}")
