"""What a launch costs, counted: a count says the same whatever else the machine does."""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import build
from target import MACHINE, SITE_PACKAGES
from tests.framework import fake_vmm, recorder
from tests.framework.roots import static_root

PYTHON, ISOLATED = build.INTERPRETER.split()
SEEDED = ISOLATED.replace("I", "s")  # reads the seed of its hashes, as -I does not
# Beside which a launch is measured: what it needs of Python, and nothing of an interpreter's end.
BARE_PYTHON = (PYTHON, ISOLATED, "-c", "import ctypes, os; os._exit(0)")
AT_THE_FORK = 96  # a status that nothing else has
# Not every valgrind knows openat2: the guest's program is looked up without it, in a root that has
# no links.
ENDS_AT_THE_FORK = f"""
import os, sys
uname = os.uname
def locate(libc, root, path, flags, resolve):
    return os.open(path[1:], flags, dir_fd=root)
def patched():
    sys.modules["krunclient.host.program"].openat2 = locate
    return uname()
os.uname, os.fork = patched, lambda: os._exit({AT_THE_FORK})
"""
ENTERED = '"entered '  # what the recording library writes first in krun_start_enter
STARTED_AGAIN = "-Xkrunclient-started-again"  # else it would leave the variables of valgrind's


@dataclass(frozen=True)
class Calls:
    """System calls of all processes, and how many of them opened a file."""

    made: int
    opened: int


class RecordedLaunch:
    """The executable with the recording library as its bundled pair, so that it runs as users run
    it, and a root. In a directory of its own, with a cache in which it is extracted.
    """

    def __init__(self, directory: Path) -> None:
        self._settings = directory / "settings"
        self.write_calls_to(Path(os.devnull), fake_vmm.STATUS)
        self.libkrun, self.libkrunfw = recorder.build(
            directory, recorder.NEWEST, "", f'-DSETTINGS="{self._settings}"'
        )
        self.root = static_root(directory / "root")
        self.executable = directory / "krunclient"
        _with_pair(self.executable, self.libkrun, self.libkrunfw)
        cache = directory / "cache"
        cache.mkdir(mode=0o700)
        self.environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache)}
        run([str(self.executable), "--version"], self.environment)

    def write_calls_to(self, calls: Path, status: int) -> None:
        """Where the recording library writes to, and what its krun_start_enter ends with."""
        self._settings.write_text(f"{calls} {status}")

    def command(self, port: int, *options: str) -> list[str]:
        return [str(self.executable), str(self.root), str(port), *options]

    def system_calls(self, port: int) -> Calls:
        """Up to krun_start_enter."""
        return system_calls(self.command(port), self.environment, until=ENTERED)

    def instructions(self, port: int) -> int:
        """Of user space, up to the fork."""
        head = self.executable.read_bytes().split(b"\n", 3)[2].decode()
        given = {"$PPID": [str(os.getppid())], "$0": self.command(port)[:1]}
        given["$@"] = self.command(port)[1:]
        _, *words = (one for word in shlex.split(head) for one in given.get(word, [word]))
        program = words.index("-c") + 1
        words[program] = ENDS_AT_THE_FORK + words[program]
        words.insert(program - 1, STARTED_AGAIN)
        return instructions(words, self.environment, AT_THE_FORK)

    def page_faults(self, port: int) -> int:
        """Minor ones of all its processes, to their end."""
        return run(self.command(port), self.environment, fake_vmm.STATUS).ru_minflt


def system_calls(command: Sequence[str], environment: Mapping[str, str], until: str) -> Calls:
    """By strace, up to the first line that holds a text."""
    with tempfile.NamedTemporaryFile("r") as trace:
        traced = ["strace", "-f", "-s", "64", "-o", trace.name, *command]
        traced_run = subprocess.run(traced, env=environment, capture_output=True, text=True)
        lines: list[str] = []
        for line in trace:
            if until in line:
                break
            if re.match(r"\d+ +\w+\(", line):
                lines.append(line)
        else:
            raise AssertionError(f"it ended without {until!r}: {traced_run}")
    opened = sum(bool(re.match(r"\d+ +open(at)?\(.* = \d+$", line.strip())) for line in lines)
    return Calls(len(lines), opened)


def instructions(command: Sequence[str], environment: Mapping[str, str], status: int) -> int:
    """Of user space, by callgrind, of the first process alone, which has to end with a status.

    Python's hashes are random, and its count with them: it is given their seed.
    """
    command = [SEEDED if word == ISOLATED else word for word in command]
    environment = {**environment, "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryDirectory() as name:
        profile = Path(name, "profile")
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}"]
        ended = subprocess.run([*valgrind, *command], env=environment, capture_output=True)
        assert ended.returncode == status, ended
        (total,) = re.findall(r"^totals: (\d+)", profile.read_text(), re.M)
    return int(total)


def run(
    command: Sequence[str], environment: Mapping[str, str], status: int = 0
) -> resource.struct_rusage:
    """What all its processes have used, getrusage(2), if it ends with this status."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(command[0], list(command), environment, file_actions=quiet)
    _, wait_status, used = os.wait4(process, 0)
    assert os.waitstatus_to_exitcode(wait_status) == status, (command, wait_status)
    return used


def _with_pair(target: Path, libkrun: Path, libkrunfw: Path) -> None:
    """The executable with another pair in it."""
    site_packages = target.with_name("site-packages")
    shutil.copytree(SITE_PACKAGES, site_packages)
    bundled = site_packages / "krunclient/bundled" / MACHINE
    shutil.copyfile(libkrun, bundled / "libkrun.so")
    shutil.copyfile(libkrunfw, bundled / "libkrunfw.so")
    build.pack(site_packages, target)
