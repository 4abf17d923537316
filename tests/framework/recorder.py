"""The recording library: libkrun's symbols of one generation, compiled on demand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.framework.launch import Ended
from tests.framework.paths import TOP

SOURCE = TOP / "tests/framework/recorder.c"
GENERATIONS = (113, 116, 117, 118, 119, 120, 200)
TOO_OLD = 109
NEWEST = GENERATIONS[-1]
# A launch with the library of one generation: how it ended, and the calls that it made.
Recorded = Callable[..., tuple[Ended, list[str]]]


def build(
    directory: Path, generation: int, taken_over: str = "", *options: str
) -> tuple[Path, Path]:
    """A libkrun that records, and a libkrunfw with nothing in it but the soname.

    `taken_over` is C code with a function of that name, which runs where the guest would.
    """
    libkrun, libkrunfw = directory / f"libkrun-{generation}.so", directory / "libkrunfw.so.5"
    source = SOURCE.read_text() + taken_over
    compile_library(libkrun, source, f"-DGENERATION={generation}", *options)
    if not libkrunfw.exists():
        compile_library(libkrunfw, "int krunfw_get_version(void) { return 5; }")
    return libkrun, libkrunfw


def compile_library(target: Path, source: str, *options: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-x", "c", "-"]
    command += [f"-Wl,-soname,{target.name}", "-o", str(target), *options]
    subprocess.run(command, input=source, text=True, check=True)
