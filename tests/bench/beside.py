"""Real VMs: what other clients of a server cost one more, and a stop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.bench.candidates import FIRST_PORT, Bench, Candidate, HungError, progress
from tests.bench.microvms import STOP_SECONDS, Running, Timed, load_once
from tests.framework.clients import ask, reading, requests, silent

PATH = "/large"
TIMEOUT = 5  # seconds, for each of the requests that are counted
CONNECTIONS, AT_ONCE, RESETS_EVERY = 3000, 8, 3
SETTLING = 3  # for the others to be as slow as they are, and no faster
ALONE = "nobody"
OTHERS: dict[str, Callable[[int], AbstractContextManager[object]]] = {
    ALONE: lambda _port: nullcontext(),
    "one that reads nothing": lambda port: ask(port, PATH),
    "one at 20 kB/s": lambda port: reading(port, PATH, 20_000),
    "one at 1 MB/s": lambda port: reading(port, PATH, 1_000_000),
    "a hundred that are silent": lambda port: silent(port, 100),
}


def measure(bench: Bench, count: int) -> dict[str, dict[str, Timed]]:
    """For each launcher and network, and each kind of others: the latency of so many requests, what
    part of them failed, and the time from a signal that asks for a stop to the end. Where there are
    no others, load and memory as well.

    The server is a Go server, the others' answer 16 MiB. Each has a VM of its own.
    """
    return {
        one.name: {
            **{name: _beside(bench, one, name, count) for name in OTHERS},
            f"{CONNECTIONS} connections, {1 / RESETS_EVERY:.0%} of them reset": _lost(bench, one),
        }
        for one in bench.networks
    }


def _lost(bench: Bench, candidate: Candidate) -> Timed:
    """How many of many connections were answered, and what became of the others, by
    connections.c.
    """
    progress(f"{candidate.name}: {CONNECTIONS} connections")
    program = bench.directory / "connections"
    if not program.exists():
        source = Path(__file__).with_name("connections.c")
        subprocess.run(["gcc", "-O1", "-pthread", "-o", program, source], check=True)
    with Running(bench, candidate, bench.go_server, FIRST_PORT) as running:
        numbers = (running.port, CONNECTIONS, AT_ONCE, RESETS_EVERY)
        command = [str(program), *map(str, numbers)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counts = (part.split() for part in text.strip().split(", "))
    return {name: float(number) for name, number in counts}


def _beside(bench: Bench, candidate: Candidate, name: str, count: int) -> Timed:
    progress(f"{candidate.name} beside {name}")
    with (
        Running(bench, candidate, bench.go_server, FIRST_PORT) as running,
        OTHERS[name](running.port),
    ):
        time.sleep(SETTLING)
        found = requests(running.port, count, TIMEOUT)
        alone = {} if name != ALONE else {"memory, MB": running.overhead_mb(), **_load(running)}
        return {
            **alone,
            "median ms": 1000 * found.median,
            "99% ms": 1000 * found.percentile_99,
            "failed, %": 100 * len(found.errors) / len(found.seconds),
            "stop ms": 1000 * _stop(running),
        }


def _load(running: Running) -> Timed:
    """Eight clients with connections that they keep, and then one that takes 16 MiB."""
    return {f"{name}, loaded": value for name, value in load_once(running).items()}


def _stop(running: Running) -> float:
    """Seconds to the end by a stop that is asked for, or as long as that is waited for."""
    try:
        return running.stop()
    except HungError as error:
        progress(str(error))
        return STOP_SECONDS
