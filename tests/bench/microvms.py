"""Real VMs: the time to an answer and to the end, memory, load, and where a launch's time goes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path

from tests.bench.candidates import FIRST_PORT, Bench, Candidate, alternate, median, progress
from tests.framework import guests

GUEST_RAM_MIN_MIB = 16
CLIENTS, LOAD_SECONDS = 8, 5
# proc_pid_smaps(5): inode, name, size and proportional set size of a mapping.
MAPPING = (
    r"^[0-9a-f]+-[0-9a-f]+ .{4} \w+ \S+ (\d+) *(.*)\n"
    r"Size: +(\d+) kB(?:\n.*?)*?\nPss: +(\d+) kB"
)
# Ten side by side on an emulated host take their time.
ANSWER_SECONDS, BOOT_SECONDS = 30, 180
Load = dict[str, dict[str, float]]


class Running:
    """A VM with the web server in it. Leaving the context ends it."""

    def __init__(self, bench: Bench, candidate: Candidate, port: int) -> None:
        self.port = port
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            candidate.command(bench.server, port),
            env=bench.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def __enter__(self) -> Running:
        while True:
            try:
                with urllib.request.urlopen(self.url, timeout=ANSWER_SECONDS) as answer:
                    answer.read()
                self.first_answer = time.monotonic() - self.started
                return self
            except OSError as error:
                late = time.monotonic() > self.started + BOOT_SECONDS
                if late or self.process.poll() is not None:
                    self.end()
                    raise AssertionError(f"no answer from {self.url}: {error}") from error
                time.sleep(0.005)

    def __exit__(self, *_exception: object) -> None:
        self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def overhead_mib(self) -> float:
        """Proportional set size of all its processes, without the guest's RAM."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sum(_overhead_mib(int(pid)) for pid in [str(self.process.pid), *children.split()])


def _overhead_mib(pid: int) -> float:
    """Of the guest's RAM, what is below the kernel and the kernel itself are mapped apart: nothing
    else that is anonymous is as large as these.
    """
    mappings = re.findall(MAPPING, Path(f"/proc/{pid}/smaps").read_text(), re.M)
    return sum(
        int(pss) / 1024
        for inode, name, size, pss in mappings
        if inode != "0" or name or int(size) < GUEST_RAM_MIN_MIB * 1024
    )


def first_answer(bench: Bench, candidate: Candidate) -> float:
    with Running(bench, candidate, FIRST_PORT) as running:
        return running.first_answer


def end(bench: Bench, candidate: Candidate, port: int = FIRST_PORT) -> float:
    started = time.monotonic()
    command = candidate.command(bench.brief, port)
    subprocess.run(command, env=bench.environment, check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - started


def stop(bench: Bench, candidate: Candidate) -> float:
    """From SIGTERM to the end. It would kill the launcher in C: SIGINT is what that passes on."""
    graceful = signal.SIGINT if candidate is bench.c_launcher else signal.SIGTERM
    with Running(bench, candidate, FIRST_PORT) as running:
        started = time.monotonic()
        running.process.send_signal(graceful)
        running.process.wait(60)
        return time.monotonic() - started


def slowest_end(bench: Bench, candidate: Candidate, count: int) -> float:
    """Of so many VMs that are started at once, and whose app ends at once."""
    progress(f"{count} VMs at once by {candidate.name}")
    with ThreadPoolExecutor(count) as pool:
        return max(pool.map(lambda n: end(bench, candidate, FIRST_PORT + n), range(count)))


def memory(bench: Bench, candidate: Candidate, count: int) -> float:
    """Per VM, with so many side by side."""
    progress(f"memory of {count} VMs by {candidate.name}")
    with ExitStack() as stack:
        running = [Running(bench, candidate, FIRST_PORT + number) for number in range(count)]
        for one in running:
            stack.push(one)
        for one in running:
            one.__enter__()
        return sum(one.overhead_mib() for one in running) / count


def load(bench: Bench, candidates: Sequence[tuple[str, Candidate]], runs: int) -> Load:
    """Requests and bytes per second, and latency in ms, through the mapped ports.

    The VMs stand side by side and are loaded in turn.
    """
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(Running(bench, candidate, FIRST_PORT + number))
            for number, (name, candidate) in enumerate(candidates)
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        for number in range(runs):
            progress(f"load: run {number + 1} of {runs}")
            for name, one in running.items():
                found[name].append({**_requests(one), "MiB/s": _mib_per_second(one)})
    return {
        name: {unit: median([each[unit] for each in results]) for unit in results[0]}
        for name, results in found.items()
    }


def _requests(running: Running) -> dict[str, float]:
    command = [str(guests.HEY), "-z", f"{LOAD_SECONDS}s", "-c", str(CLIENTS), running.url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        assert found, text
        return float(found[1])

    assert "Error distribution" not in text, text
    return {
        "requests/s": number(r"Requests/sec:\s+([\d.]+)"),
        "median ms": 1000 * number(r"50% in ([\d.]+)"),
        "99% ms": 1000 * number(r"99% in ([\d.]+)"),
    }


def _mib_per_second(running: Running) -> float:
    began = time.monotonic()
    with urllib.request.urlopen(f"{running.url}large", timeout=120) as answer:
        size = len(answer.read())
    return size / 2**20 / (time.monotonic() - began)


def stages(bench: Bench) -> list[tuple[str, float]]:
    """Where a launch's time goes, by the events of the JSON log: name, and ms from exec."""
    began = time.time()
    command = bench.krunclient.command(bench.server, FIRST_PORT)
    process = subprocess.Popen(
        [*command, "--log-level=debug", "--log-format=json"],
        env=bench.environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    found = []
    for line in process.stderr:
        message = json.loads(line)
        at = datetime.fromisoformat(message["time"].replace("Z", "+00:00")).timestamp()
        found.append((message["event"], 1000 * (at - began)))
        if message["event"] == "ready":
            break
    process.kill()
    process.communicate()
    return found


TIMED: dict[str, Callable[[Bench, Candidate], float]] = {
    "first answer": first_answer,
    "end": end,
    "stop": stop,
}


def beside_c(bench: Bench, what: str, runs: int) -> dict[str, list[float]]:
    """One of TIMED, in alternating runs of both launchers."""
    both = (bench.c_launcher, bench.krunclient)
    return alternate(what, runs, {one.name: partial(TIMED[what], bench, one) for one in both})
