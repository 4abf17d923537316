"""From exec to the entry of krun_start_enter, which the recording library tells the time of.

Each launch is compared with the start of a bare Python beside it, in real time and in processor
time, so that what slows the machine for a while slows both.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.bench.candidates import AT_ONCE, FIRST_PORT, Bench, alternate, compile_c
from tests.framework import fake_vmm
from tests.framework.counts import BARE_PYTHON, RecordedLaunch, run

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Cost:
    """Seconds: until krun_start_enter, else to the end, and of the processors, of all processes and
    to their end.
    """

    real: float
    processor: float


class StartUp:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        directory = bench.directory / "recorder"
        directory.mkdir()
        self.launch = RecordedLaunch(directory)
        self._program = directory / "launcher"
        compile_c(self._program, self.launch.libkrun)
        self._calls = directory / "calls"
        self.launch.write_calls_to(self._calls, fake_vmm.STATUS)

    def measure(self, runs: int) -> dict[str, list[Cost]]:
        without_sandbox = [*self.krunclient(FIRST_PORT), "--sandbox", "off"]
        commands = {
            "bare Python": BARE_PYTHON,
            "C": self.c_launcher(FIRST_PORT),
            "krunclient": self.krunclient(FIRST_PORT),
            "krunclient --sandbox off": without_sandbox,
        }

        def measure(command: Sequence[str]) -> Callable[[], Cost]:
            enters = command is not BARE_PYTHON
            return lambda: self._cost(command, self.launch.environment, enters=enters)

        measures = {name: measure(command) for name, command in commands.items()}
        return alternate("start", runs, measures)

    def first(self, runs: int) -> list[Cost]:
        """With nothing extracted yet: of the executable as it is, whose pair is large."""
        pair = {"--libkrun": self.launch.libkrun, "--libkrunfw": self.launch.libkrunfw}
        command = [str(self._bench.executable), str(self.launch.root), str(FIRST_PORT)]
        command += [str(word) for option in pair.items() for word in option]
        costs = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory(dir=self._bench.directory) as cache:
                os.chmod(cache, 0o700)
                environment = {**self.launch.environment, "XDG_CACHE_HOME": cache}
                costs.append(self._cost(command, environment, enters=True))
        return costs

    def slowest_at_once(self, command: Callable[[int], list[str]]) -> float:
        """To the end of each."""

        def seconds(number: int) -> float:
            started = time.monotonic()
            run(command(FIRST_PORT + number), self.launch.environment, fake_vmm.STATUS)
            return time.monotonic() - started

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return max(pool.map(seconds, range(AT_ONCE)))

    def krunclient(self, port: int) -> list[str]:
        return self.launch.command(port)

    def c_launcher(self, port: int) -> list[str]:
        return [str(self._program), str(self.launch.root), str(port)]

    def _cost(self, command: Sequence[str], environment: Environment, *, enters: bool) -> Cost:
        self._calls.write_text("")
        started = time.monotonic_ns()
        used = run(command, environment, fake_vmm.STATUS if enters else 0)
        reached = time.monotonic_ns()
        if enters:
            (entered,) = re.findall(r"^entered (\d+)$", self._calls.read_text(), re.M)
            reached = int(entered)
        return Cost((reached - started) / 10**9, used.ru_utime + used.ru_stime)
