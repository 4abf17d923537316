"""What the VMM's filter adds to the calls that it makes most."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.sandbox import seccomp
from tests.bench.candidates import median

SOURCE = Path(__file__).with_suffix(".c")
NAMES = ("a KVM ioctl", "a send and its receipt")
TURNS, ROUNDS = 9, 20


def measure(directory: Path) -> dict[str, dict[str, float]]:
    """Nanoseconds without the filter and under it, in turns: of each the median."""
    program, filtered = directory / "calls", directory / "filter"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, SOURCE], check=True)
    architecture = ARCHITECTURES[os.uname().machine]
    rules = seccomp.assemble(architecture, os.getpid(), set_id_bits=False, sockets=True)
    filtered.write_bytes(b"".join(rules))
    commands = {"without the filter": [program], "under it": [program, filtered]}
    turns = [{how: _run(*command) for how, command in commands.items()} for _ in range(TURNS)]
    return {
        name: {how: median([turn[how][number] for turn in turns]) for how in commands}
        for number, name in enumerate(NAMES)
    }


def _run(program: Path, *filtered: Path) -> list[float]:
    command: list[str | Path] = [program, str(ROUNDS), *filtered]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(word) for word in said.split()]
