"""The examples for process managers are what those managers take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import debian
from tests.framework.paths import EXECUTABLE, SCRIPTS

UNIT = SCRIPTS / "managers/krunclient@.service"


@pytest.fixture(scope="module")
def systemd_analyze() -> str:
    debian.require("managers")
    return "systemd-analyze"


def verify(program: str, directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    unit = directory / UNIT.name
    unit.write_text(text)
    command = [program, "verify", "--man=no", str(unit)]
    return subprocess.run(command, capture_output=True, text=True)


def test_systemd_takes_the_unit_template(systemd_analyze: str, tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/usr/local/bin/krunclient", str(EXECUTABLE))
    found = verify(systemd_analyze, tmp_path, text)
    assert (found.returncode, found.stderr) == (0, "")
    found = verify(systemd_analyze, tmp_path, text.replace("KillMode=mixed", "KillMode=mixd"))
    assert "kill mode" in found.stderr


def test_the_unit_waits_longer_than_the_grace_period() -> None:
    lines = UNIT.read_text().splitlines()
    (stop,) = (line for line in lines if line.startswith("TimeoutStopSec="))
    (start,) = (line for line in lines if line.startswith("ExecStart="))
    words = start.split()
    assert int(stop.partition("=")[2]) > int(words[words.index("--grace-period") + 1])
