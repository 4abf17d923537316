"""Processes as /proc shows them."""

from __future__ import annotations

import os
import time
from pathlib import Path


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(process: int) -> list[Path]:
    """Their directories in /proc."""
    of_threads = Path(f"/proc/{process}/task").glob("*/children")
    return [Path("/proc", child) for path in of_threads for child in path.read_text().split()]


def status_of(process: Path) -> dict[str, str]:
    """The fields of proc_pid_status(5), for a directory of /proc."""
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor_seconds(process: int) -> float:
    """Of all its threads, by proc_pid_stat(5)."""
    stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def holds(process: Path, name: str) -> bool:
    """Whether a process, by its directory in /proc, has a file open whose path ends so."""
    try:
        return any(os.readlink(one).endswith(name) for one in (process / "fd").iterdir())
    except FileNotFoundError:
        return False  # it has ended, or closed one meanwhile


def is_gone_within(seconds: float, process: int) -> bool:
    deadline = time.monotonic() + seconds
    while runs(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def with_argument(path: Path) -> list[int]:
    """The processes on whose command line this path is, the forked children of one included."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if bytes(path) in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            pass  # it has ended
    return found
