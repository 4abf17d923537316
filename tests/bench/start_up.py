"""From exec to the entry of krun_start_enter, which the recording library tells the time of."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.candidates import AT_ONCE, FIRST_PORT, Bench, alternate, bare_python, compile_c
from tests.framework import fake_vmm

Environment = Mapping[str, str]


class StartUp:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        directory = bench.directory / "recorder"
        directory.mkdir()
        self._arguments = [str(word) for word in fake_vmm.build(directory, "")]
        self._libkrun = Path(self._arguments[1])
        self._program = directory / "launcher"
        compile_c(self._program, self._libkrun)

    def measure(self, runs: int) -> dict[str, list[float]]:
        without_sandbox = [*self.krunclient(FIRST_PORT), "--sandbox", "off"]
        return alternate(
            "start",
            runs,
            {
                "bare Python": lambda: bare_python(self._bench),
                "C": lambda: self._entered(self.c_launcher(FIRST_PORT)),
                "krunclient": lambda: self._entered(self.krunclient(FIRST_PORT)),
                "krunclient --sandbox off": lambda: self._entered(without_sandbox),
            },
        )

    def first(self, runs: int) -> list[float]:
        """With nothing extracted yet."""
        seconds = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory(dir=self._bench.directory) as cache:
                os.chmod(cache, 0o700)
                environment = {**self._bench.environment, "XDG_CACHE_HOME": cache}
                seconds.append(self._entered(self.krunclient(FIRST_PORT), environment))
        return seconds

    def slowest_at_once(self, command: Callable[[int], list[str]]) -> float:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return max(pool.map(lambda n: self._run(command(FIRST_PORT + n)), range(AT_ONCE)))

    def krunclient(self, port: int) -> list[str]:
        return [str(self._bench.executable), *self._arguments, str(port)]

    def c_launcher(self, port: int) -> list[str]:
        return [str(self._program), str(self._arguments[-1]), str(port)]

    def _run(self, command: list[str]) -> float:
        started = time.monotonic()
        subprocess.run(command, env=self._bench.environment, check=False)
        return time.monotonic() - started

    def _entered(self, command: list[str], environment: Environment | None = None) -> float:
        calls = self._bench.directory / "calls"
        calls.write_text("")
        Path(f"{self._libkrun}.settings").write_text(f"{calls} {fake_vmm.STATUS}")
        started = time.monotonic_ns()
        subprocess.run(command, env=environment or self._bench.environment, check=False)
        (entered,) = re.findall(r"^entered (\d+)$", calls.read_text(), re.M)
        return (int(entered) - started) / 10**9


def system_calls(command: list[str], environment: Environment) -> dict[str, int]:
    """By strace: how many calls, and how many files opened."""
    with tempfile.NamedTemporaryFile("r") as trace:
        subprocess.run(
            ["strace", "-f", "-o", trace.name, *command], env=environment, capture_output=True
        )
        lines = [line for line in trace if re.match(r"\d+ +\w+\(", line)]
    opened = sum(bool(re.match(r"\d+ +open(at)?\(.* = \d+$", line.strip())) for line in lines)
    return {"system calls": len(lines), "files opened": opened}
