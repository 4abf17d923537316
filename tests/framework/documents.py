"""The documents, and the commands that they tell people to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.framework.paths import TOP

DOCUMENTS = [*TOP.glob("*.md"), *(TOP / "docs").glob("*.md"), TOP / "tests/README.md"]
# What a line begins with that is typed. Behind "$ " all is typed, and the other lines are output.
PROGRAMS = (
    *("(cd", "curl", "dist-scripts/nox", "git", "krunclient", "mkdir", "podman", "ps", "python3"),
    *("sbatch", "scancel", "sudo", "systemctl", "systemd-run", "unzip"),
)
# These are run where VMs are, with the directories that the documents speak of.
IN_A_HOST = ("krunclient", "mkdir")
BLOCK = re.compile(r"(?:^    .*\n)+", re.M)


def commands(document: Path) -> Iterator[str]:
    for block in BLOCK.findall(document.read_text()):
        lines = [line.removeprefix("    ") for line in block.splitlines()]
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        if not typed and lines[0].split()[0] in PROGRAMS:
            typed = lines
        # The line that tells how krunclient is called is none to type.
        yield from (line.partition(" # ")[0].rstrip() for line in typed if "[OPTIONS]" not in line)
