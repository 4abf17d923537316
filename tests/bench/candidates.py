"""The launchers that are measured side by side, and how to time them fairly."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.framework.launch import busybox_root
from tests.framework.paths import EXECUTABLE

LAUNCHER_SOURCE = Path(__file__).with_name("launcher.c")
FIRST_PORT = 32000
SERVER = (
    "mkdir -p /www; echo hello >/www/index.html;"
    " dd if=/dev/zero of=/www/large bs=1M count=16 2>/dev/null;"
    " exec httpd -f -p 80 -h /www"
)
PROGRESS = 10


@dataclass(frozen=True)
class Candidate:
    """A launcher: its name, and its command for a root and a port."""

    name: str
    command: Callable[[Path, int], list[str]]


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
        extract = [self.executable, "--version"]
        subprocess.run(extract, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        self.krunclient = Candidate(
            "krunclient", lambda root, port: [str(self.executable), str(root), str(port)]
        )
        self.c_launcher = self._c_launcher()

    def _c_launcher(self) -> Candidate:
        """Linked to the very pair that krunclient loads."""
        (bundled,) = self.cache.glob("krunclient/*/site-packages/krunclient/bundled/x86_64")
        pair = self.directory / "pair"
        pair.mkdir()
        (pair / "libkrun.so.2").symlink_to(bundled / "libkrun.so")
        (pair / "libkrunfw.so.5").symlink_to(bundled / "libkrunfw.so")
        program = self.directory / "launcher"
        # Its undefined symbols are those of a GPU library that is not used.
        options = ["-Wl,--unresolved-symbols=ignore-all", "-Wl,-z,lazy", "-Wl,--disable-new-dtags"]
        compile_c(program, pair / "libkrun.so.2", *options)
        return Candidate("C", lambda root, port: [str(program), str(root), str(port)])


def compile_c(program: Path, libkrun: Path, *options: str) -> None:
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", f"-Wl,-rpath,{libkrun.parent}", *options]
    subprocess.run(["gcc", "-o", program, LAUNCHER_SOURCE, libkrun, *flags], check=True)


def alternate(
    what: str, runs: int, measures: Mapping[str, Callable[[], float]]
) -> dict[str, list[float]]:
    """Each measure in turn, so that what disturbs the machine disturbs them alike."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(runs):
        if number % PROGRESS == 0:
            progress(f"{what}: run {number + 1} of {runs}")
        for name, measure in measures.items():
            results[name].append(measure())
    return results


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
