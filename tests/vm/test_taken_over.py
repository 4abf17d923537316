"""A VMM that its guest has taken over, as root and as a user, on a kernel with all of Landlock."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import attacks, fake_vmm
from tests.framework.launch import Launcher
from tests.framework.roots import open_to


@pytest.fixture
def directory(scratch: Path) -> Iterator[Path]:
    path = scratch / "taken-over"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def test_no_attack_by_system_calls_gets_anywhere(
    any_launcher: Launcher, directory: Path, port: int
) -> None:
    arguments = fake_vmm.build(directory, attacks.source())
    open_to(any_launcher.user or 0, directory / "root")
    ended = any_launcher.run(*arguments, str(port))
    assert attacks.breaches(ended.stdout) == []
    assert (ended.status, ended.stderr) == (fake_vmm.STATUS, b"")


def test_a_vmm_that_changes_its_user_still_dies_with_the_supervisor(
    any_launcher: Launcher, directory: Path, port: int
) -> None:
    escape = (fake_vmm.CHANGES_ITS_USER, fake_vmm.LISTENING, fake_vmm.STAYS)
    arguments = fake_vmm.build(directory, fake_vmm.source(*escape))
    open_to(any_launcher.user or 0, directory / "root")
    process = any_launcher.start(*arguments, str(port), *fake_vmm.TELLS_ITS_STORY)
    assert fake_vmm.dies_with_its_supervisor(process)


# Starts krunclient, and dies as soon as Python is there in its place. Where both want the same
# processor, krunclient gets hardly any of it until then.
DIES_EARLY = """
import os, subprocess, sys
def idle():
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=idle)
print(child.pid, flush=True)
while b"python" not in open(f"/proc/{child.pid}/comm", "rb").read():
    pass
os._exit(0)
"""


@pytest.mark.parametrize(("options", "goes_on"), [(["--die-with-parent"], False), ([], True)])
def test_a_parent_that_dies_while_python_starts_is_not_missed(
    launcher: Launcher, directory: Path, port: int, options: list[str], goes_on: bool
) -> None:
    arguments = fake_vmm.build(directory, fake_vmm.source(fake_vmm.LISTENING, fake_vmm.STAYS))
    options = [*options, *fake_vmm.TELLS_ITS_STORY]
    command = [sys.executable, "-c", DIES_EARLY, *launcher.command, *arguments, str(port), *options]
    with subprocess.Popen(
        command, env=dict(launcher.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        krunclient = int(parent.stdout.readline())
        parent.wait()
        # To the end, which comes when krunclient is gone.
        is_ready = any(json.loads(line)["event"] == "ready" for line in parent.stderr)
        assert is_ready == goes_on
        if is_ready:
            os.kill(krunclient, signal.SIGKILL)
