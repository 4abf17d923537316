"""ELF files are read as they are, and bad ones as nothing."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.host.elf import Elf
from target import ARCHITECTURE
from tests.framework import recorder
from tests.framework.elf import elf


def opened(path: Path) -> Elf:
    return Elf(os.open(path, os.O_RDONLY))


def test_a_librarys_functions_are_among_its_dynamic_strings(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    recorder.compile_library(
        library, "__attribute__((used)) static int hidden_; int exported(void) { return 0; }"
    )
    found = opened(library)
    served = [one for one in ARCHITECTURES.values() if found.is_for(one.elf_machine)]
    assert served == [ARCHITECTURE]
    names = found.dynamic_strings().split(b"\0")
    assert b"exported" in names
    assert b"hidden_" not in names


def test_a_program_names_its_interpreter_or_has_none(tmp_path: Path) -> None:
    for interpreter in (None, "/lib/ld.so"):
        (tmp_path / "program").write_bytes(elf(interpreter=interpreter))
        found = opened(tmp_path / "program")
        assert found.is_whole_program()
        assert found.interpreter() == interpreter
        assert found.dynamic_strings() == b""


@given(data=st.binary(max_size=300), position=st.integers(0, 200))
def test_no_damage_breaks_the_reader(tmp_path_factory: object, data: bytes, position: int) -> None:
    whole = elf(interpreter="/lib/ld.so")
    descriptor = os.memfd_create("elf")
    os.write(descriptor, whole[:position] + data + whole[position + len(data) :])
    found = Elf(descriptor)
    found.is_for(ARCHITECTURE.elf_machine)
    found.is_whole_program()
    found.interpreter()
    found.dynamic_strings()
    os.close(descriptor)
