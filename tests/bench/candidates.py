"""The launchers that are measured side by side, and how to time them fairly."""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from target import MACHINE
from tests.framework import guests
from tests.framework.counts import BARE_PYTHON
from tests.framework.paths import EXECUTABLE
from tests.framework.roots import busybox_root, caddy_root

LAUNCHER_SOURCE = Path(__file__).with_name("launcher.c")
FIRST_PORT = 32000
AT_ONCE = 20
ATTEMPTS = 3
SERVER = "exec httpd -f -p 80 -h /www"
# In the guest's memory: what is to be measured is the way through the port, not the file system.
LARGE_FILE = "busybox dd if=/dev/zero of=/dev/shm/large bs=1M count=16 2>/dev/null"

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Candidate:
    """A launcher: its name, its command for a root and a port, and the signal by which it is asked
    to stop.
    """

    name: str
    command: Callable[[Path, int], list[str]]
    stop_signal: int = signal.SIGTERM


class HungError(Exception):
    """A VM of this launcher answers no more, or never ends. That happens to libkrun now and then,
    whoever launched it.
    """

    def __init__(self, launcher: str, what: str) -> None:
        super().__init__(f"{launcher}: {what}")
        self.launcher = launcher


class Bench:
    """One place on tmpfs with all that is measured: off it, the page cache would decide."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.executable = shutil.copy2(EXECUTABLE, directory / "krunclient")
        self.cache = directory / "cache"
        self.cache.mkdir(mode=0o700)
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "XDG_CACHE_HOME": str(self.cache),
            "HOST": "example.test",
            "INTERNAL_SECRET": "s3cret",
        }
        self.server = busybox_root(directory / "server", SERVER)
        self.brief = busybox_root(directory / "brief", "exit 0")
        for root in (self.server, self.brief):
            for name in ("dev", "proc", "sys"):  # init makes them where it can write
                (root / name).mkdir()
        (self.server / "www").mkdir()
        (self.server / "www/index.html").write_text("hello\n")
        # Under load the app is a Go server, as in practice: it keeps connections, and never forks.
        self.go_server = caddy_root(directory / "go-server", LARGE_FILE, grace="1s")
        extract = [self.executable, "--version"]
        subprocess.run(extract, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        self.krunclient = Candidate(
            "krunclient", lambda root, port: [str(self.executable), str(root), str(port)]
        )
        self.c_launcher = self._c_launcher()
        self.both = (self.c_launcher, self.krunclient)
        passt = shutil.copytree(guests.PASST.parent, directory / "passt") / guests.PASST.name
        options = ["--network=passt", f"--passt={passt}"]
        behind_passt = Candidate(
            "krunclient, passt", lambda root, port: [*self.krunclient.command(root, port), *options]
        )
        self.networks = (*self.both, behind_passt)

    def _c_launcher(self) -> Candidate:
        """Linked to the very pair that krunclient loads."""
        (bundled,) = self.cache.glob("krunclient/*/site-packages/krunclient/bundled/" + MACHINE)
        pair = self.directory / "pair"
        pair.mkdir()
        (pair / "libkrun.so.2").symlink_to(bundled / "libkrun.so")
        (pair / "libkrunfw.so.5").symlink_to(bundled / "libkrunfw.so")
        program = self.directory / "launcher"
        # Its undefined symbols are those of a GPU library that is not used.
        options = ["-Wl,--unresolved-symbols=ignore-all", "-Wl,-z,lazy", "-Wl,--disable-new-dtags"]
        compile_c(program, pair / "libkrun.so.2", *options)

        def command(root: Path, port: int) -> list[str]:
            return [str(program), str(root), str(port)]

        return Candidate("C", command, signal.SIGINT)  # which it passes on; SIGTERM would kill it


def compile_c(program: Path, libkrun: Path, *options: str) -> None:
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", f"-Wl,-rpath,{libkrun.parent}", *options]
    subprocess.run(["gcc", "-o", program, LAUNCHER_SOURCE, libkrun, *flags], check=True)


def bare_python(bench: Bench) -> float:
    """What starting Python costs where this is called: the unit of goals that compare with it."""
    started = time.monotonic()
    subprocess.run(BARE_PYTHON, env=bench.environment, check=True)
    return time.monotonic() - started


def alternate(
    what: str, runs: int, measures: Mapping[str, Callable[[], Measured]]
) -> dict[str, list[Measured]]:
    """Each measure in turn, there and back, so that what disturbs the machine disturbs them alike.

    The first of each is not counted: it finds caches cold.
    """
    results: dict[str, list[Measured]] = {name: [] for name in measures}
    progress(f"{what}: first run")
    for measure in measures.values():
        unhung(measure)
    order = list(measures)
    for number in range(runs):
        progress(f"{what}: run {number + 1} of {runs}")
        for name in order:
            results[name].append(unhung(measures[name]))
        order.reverse()
    return results


def unhung(measure: Callable[[], Measured]) -> Measured:
    """Measure again where a VM hung, and say so."""
    for _ in range(ATTEMPTS - 1):
        try:
            return measure()
        except HungError as error:
            progress(f"measured again: {error}")
    return measure()


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """The interquartile range, as a part of the median."""
    if len(values) < 4:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / median(values)
