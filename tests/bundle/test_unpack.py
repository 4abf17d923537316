"""The first start's unpacking, in which other processes help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import build
from tests.framework.paths import TOP

FIRST_STAGE = TOP / "krunclient/zipapp"
PARTS = 7
CONTENT = os.urandom(build.PART_BYTES * 3) + bytes(build.PART_BYTES * PARTS) + b"the end"

PROGRAM = """
import json, os, signal, sys, unpack

class Archive:
    def read(self, name):
        if os.getpid() != itself:
            {helpers}
        with open(name, "rb") as file:
            return file.read()

itself = os.getpid()
os.sched_getaffinity = lambda _process: range(3)
{before}
parts, target = json.loads(sys.argv[1]), sys.argv[2]
files, result = unpack.unpack(Archive(), parts, target, lambda: "meanwhile")
assert files == {{name.partition("@")[0] for name in parts}}
assert result == "meanwhile"
"""
NO_PROCESS = "def refuse(): raise BlockingIOError\nos.fork = refuse"


def parts_of(content: bytes, directory: Path) -> list[str]:
    """Relative to the directory."""
    source = directory / "source"
    source.write_bytes(content)
    (directory / "pair").mkdir()
    build.copy_in_parts(str(source), str(directory / "pair/large"))
    build.copy_in_parts(str(Path(__file__)), str(directory / "small"))
    paths = [*(directory / "pair").iterdir(), directory / "small"]
    return [str(path.relative_to(directory)) for path in paths]


def unpacked(
    parts: list[str], directory: Path, helpers: str = "pass", before: str = ""
) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(helpers=helpers, before=before)
    target = directory / "target"
    target.mkdir()
    words = [sys.executable, "-c", program, json.dumps(parts), str(target)]
    environment = {"PYTHONPATH": str(FIRST_STAGE)}
    return subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("helpers", "before"),
    [
        ("pass", ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", ""),
        ("raise MemoryError", ""),
        ("raise OSError", ""),
        ("pass", NO_PROCESS),
        ("raise MemoryError", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"),
    ],
)
def test_whatever_becomes_of_the_helpers_all_files_are_whole(
    tmp_path: Path, helpers: str, before: str
) -> None:
    parts = parts_of(CONTENT, tmp_path)
    ended = unpacked(parts, tmp_path, helpers, before)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "target/pair/large").read_bytes() == CONTENT
    assert (tmp_path / "target/small").read_bytes() == Path(__file__).read_bytes()


def test_zeros_take_no_room_but_at_a_files_end(tmp_path: Path) -> None:
    parts = parts_of(CONTENT, tmp_path)
    assert len(parts) == 3 + 1 + 1
    ended_by_zeros = tmp_path / "other"
    ended_by_zeros.mkdir()
    content = CONTENT[: build.PART_BYTES * 5]
    parts = parts_of(content, ended_by_zeros)
    assert unpacked(parts, ended_by_zeros).returncode == 0
    assert (ended_by_zeros / "target/pair/large").read_bytes() == content


def test_what_nobody_can_read_is_told(tmp_path: Path) -> None:
    parts = parts_of(CONTENT, tmp_path)
    (tmp_path / "pair/large@0").unlink()
    ended = unpacked(parts, tmp_path)
    assert ended.returncode == 1
    assert "FileNotFoundError" in ended.stderr


def test_no_helper_is_left_when_this_process_fails(tmp_path: Path) -> None:
    parts = parts_of(CONTENT, tmp_path)
    meanwhile = """
fork, helpers = os.fork, []
def counted():
    helpers.append(fork())
    return helpers[-1]
os.fork = counted
def fail(): raise ValueError("of this process")
unpack_all = unpack.unpack
def failing(archive, parts, target, meanwhile):
    try:
        unpack_all(archive, parts, target, fail)
    finally:
        assert len(helpers) == 2
        for helper in helpers:
            try: os.kill(helper, 0)
            except ProcessLookupError: continue
            os._exit(96)
unpack.unpack = failing
"""
    ended = unpacked(parts, tmp_path, before=meanwhile)
    assert ended.returncode == 1
    assert "ValueError: of this process" in ended.stderr


def test_helpers_end_with_the_process_that_they_help(tmp_path: Path) -> None:
    """Else whoever waits for the end of its output would wait for them."""
    parts = parts_of(CONTENT, tmp_path)
    before = """
import time
def slow(name):
    if os.getpid() == itself:
        os.kill(itself, signal.SIGKILL)
    time.sleep(2)
    with open(name, "rb") as file:
        return file.read()
Archive.read = lambda self, name: slow(name)
"""
    began = time.monotonic()
    assert unpacked(parts, tmp_path, before=before).returncode == -9
    # Each of two is at one part, and two are left.
    assert time.monotonic() - began < 3.5
