"""Real VMs: the time to an answer and to the end, memory, load, and where a launch's time goes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path

from tests.bench.candidates import (
    AT_ONCE,
    ATTEMPTS,
    FIRST_PORT,
    Bench,
    Candidate,
    HungError,
    alternate,
    bare_python,
    progress,
)
from tests.framework import guests
from tests.framework.processes import children_of

GUEST_RAM_MIN_MIB = 16
# Short and often: an emulated host is at times twice as fast as at others.
CLIENTS, LOAD_SECONDS = 8, 3
# proc_pid_smaps(5): inode, name, size and proportional set size of a mapping.
MAPPING = (
    r"^[0-9a-f]+-[0-9a-f]+ .{4} \w+ \S+ (\d+) *(.*)\n"
    r"Size: +(\d+) kB(?:\n.*?)*?\nPss: +(\d+) kB"
)
# Ten side by side on an emulated host take their time.
ANSWER_SECONDS, BOOT_SECONDS, STOP_SECONDS = 30, 180, 60
RESOLUTION = 0.01  # of the time to the first answer
Timed = dict[str, float]


class Running:
    """A VM with the web server in it. Leaving the context ends it."""

    def __init__(self, bench: Bench, candidate: Candidate, root: Path, port: int) -> None:
        self.launcher = candidate.name
        self._stop_signal = candidate.stop_signal
        self.port = port
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            candidate.command(root, port),
            env=bench.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def __enter__(self) -> Running:
        while not self._answers():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.launcher} ended with {self.process.returncode}")
            if time.monotonic() > self.started + BOOT_SECONDS:
                self.end()
                raise HungError(self.launcher, "no first answer")
            time.sleep((time.monotonic() - self.started) * RESOLUTION)
        self.first_answer = time.monotonic() - self.started
        return self

    def _answers(self) -> bool:
        """By a plain socket: asking costs processor time, of which an emulated host has little."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False

    def __exit__(self, *_exception: object) -> None:
        self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """Seconds to the end by a stop that is asked for. Raises HungError."""
        asked = time.monotonic()
        self.process.send_signal(self._stop_signal)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise HungError(self.launcher, "no end after a stop") from None
        return time.monotonic() - asked

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def overhead_mb(self) -> float:
        """Proportional set size of all its processes, without the guest's RAM."""
        itself = Path("/proc", str(self.process.pid))
        return sum(_overhead_mb(one) for one in (itself, *children_of(self.process.pid)))


def _overhead_mb(process: Path) -> float:
    """Of the guest's RAM, what is below the kernel and the kernel itself are mapped apart: nothing
    else that is anonymous is as large as these.
    """
    mappings = re.findall(MAPPING, (process / "smaps").read_text(), re.M)
    return sum(
        int(pss) * 1024 / 10**6
        for inode, name, size, pss in mappings
        if inode != "0" or name or int(size) < GUEST_RAM_MIN_MIB * 1024
    )


def served(bench: Bench, runs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds from exec to the first answer, with those of a bare Python in the same place; and
    from the signal that asks for a stop to the end.
    """

    def serve(candidate: Candidate) -> list[float]:
        with Running(bench, candidate, bench.server, FIRST_PORT) as running:
            return [running.first_answer, running.stop()]

    launchers = {one.name: partial(serve, one) for one in bench.both}
    measures: dict[str, Callable[[], list[float]]] = {
        "bare Python": lambda: [bare_python(bench)],
        **launchers,
    }
    seconds = alternate("first answer and stop", runs, measures)
    return {
        "first answer": {name: [run[0] for run in runs] for name, runs in seconds.items()},
        "stop": {name: [run[1] for run in seconds[name]] for name in launchers},
    }


def ended(bench: Bench, runs: int) -> dict[str, list[float]]:
    """Seconds from exec to the end of a VM whose app ends at once."""
    measures = {one.name: partial(end, bench, one, FIRST_PORT) for one in bench.both}
    return alternate("end", runs, measures)


def end(bench: Bench, candidate: Candidate, port: int) -> float:
    started = time.monotonic()
    command = candidate.command(bench.brief, port)
    try:
        subprocess.run(
            command,
            env=bench.environment,
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=BOOT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise HungError(candidate.name, "no end") from None
    return time.monotonic() - started


def slowest_end(bench: Bench, runs: int) -> dict[str, list[float]]:
    """Of so many VMs that are started at once, and whose app ends at once."""

    def slowest(candidate: Candidate) -> float:
        ports = range(FIRST_PORT, FIRST_PORT + AT_ONCE)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return max(pool.map(partial(end, bench, candidate), ports))

    measures = {one.name: partial(slowest, one) for one in bench.both}
    return alternate(f"{AT_ONCE} VMs at once", runs, measures)


def memory(bench: Bench, candidate: Candidate, count: int) -> float:
    """Per VM, with so many side by side."""
    progress(f"memory of {count} VMs by {candidate.name}")
    with ExitStack() as stack:
        running = [
            Running(bench, candidate, bench.server, FIRST_PORT + number) for number in range(count)
        ]
        for one in running:
            stack.push(one)
        for one in running:
            one.__enter__()
        return sum(one.overhead_mb() for one in running) / count


def load(bench: Bench, runs: int) -> dict[str, list[Timed]]:
    """Requests and bytes per second, and latency in ms, through the mapped ports.

    Three VMs stand side by side and are loaded in turn: that of krunclient, and two of C's, which
    show how much two runs of one launcher differ.
    """
    candidates = {**{one.name: one for one in bench.both}, "C again": bench.c_launcher}
    running: dict[str, Running] = {}

    def loaded(name: str) -> Timed:
        if name not in running:
            port = FIRST_PORT + list(candidates).index(name)
            running[name] = Running(bench, candidates[name], bench.go_server, port).__enter__()
        try:
            return load_once(running[name])
        except HungError:
            running.pop(name).end()
            raise

    try:
        return alternate("load", runs, {name: partial(loaded, name) for name in candidates})
    finally:
        for one in running.values():
            one.end()


def load_once(running: Running) -> Timed:
    return {**_requests(running), "MiB/s": _mib_per_second(running)}


def _requests(running: Running) -> Timed:
    command = [str(guests.HEY), "-z", f"{LOAD_SECONDS}s", "-c", str(CLIENTS), running.url]
    for _ in range(ATTEMPTS):
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # libkrun closes a connection now and then, whoever launched it.
        if "Error distribution" not in text:
            break
    else:
        raise HungError(running.launcher, "requests fail")

    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        assert found, text
        return float(found[1])

    return {
        "requests/s": number(r"Requests/sec:\s+([\d.]+)"),
        "median ms": 1000 * number(r"50% in ([\d.]+)"),
        "99% ms": 1000 * number(r"99% in ([\d.]+)"),
    }


def _mib_per_second(running: Running) -> float:
    began = time.monotonic()
    try:
        with urllib.request.urlopen(f"{running.url}large", timeout=ANSWER_SECONDS) as answer:
            size = len(answer.read())
    except OSError as error:
        raise HungError(running.launcher, str(error)) from None
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
