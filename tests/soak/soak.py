"""Many launches, in a row and side by side, half of them ended by a signal at a random moment.

    python -m tests.soak.soak [--launches N] [--parallel P] [--recorder]
    python -m tests.soak.soak --combine RESULT...

Counts what came out by kind, looks for anything left behind after each launch, and says what bound
on the failure rate the count supports. With --recorder a VMM of a few lines of C stands in for
libkrun: what is tested then is krunclient alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.framework import fake_vmm
from tests.framework.launch import STOP_SIGNALS, Launcher
from tests.framework.paths import ARTEFACTS, EXECUTABLE, PYTHONPATH
from tests.framework.processes import is_gone_within
from tests.framework.roots import GRACEFUL_HTTPD, STATUS_WHEN_ASKED, busybox_root

FIRST_PORT = 10000
PORTS = 20000  # below those that the kernel gives to clients
GONE_SECONDS = 1.0
LEFT_SECONDS = 30.0  # what is gone after that was late, by the machine's fault perhaps
END_SECONDS = 90
CONFIDENCE = 0.95
PROGRESS = 20

# What an app does when it is asked to stop, and what one does that ends by itself.
ASKED, BY_ITSELF = STATUS_WHEN_ASKED, 7
SERVER = f"mkdir -p /www; echo hello >/www/index.html; {GRACEFUL_HTTPD}"
BRIEF_APP = f"exit {BY_ITSELF}"


@dataclass(frozen=True)
class Place:
    """Where launches happen: the launcher, and the arguments for a server and for a brief app."""

    launcher: Launcher
    server: Sequence[str | Path]
    brief: Sequence[str | Path]
    boot_seconds: float


@dataclass
class Results:
    """Launches by scenario and outcome, failures by kind, and how long it took."""

    launches: int = 0
    seconds: float = 0
    outcomes: Counter[str] = field(default_factory=lambda: Counter[str]())
    failures: Counter[str] = field(default_factory=lambda: Counter[str]())

    def add(self, other: Results) -> None:
        self.launches += other.launches
        self.seconds = max(self.seconds, other.seconds)
        self.outcomes += other.outcomes
        self.failures += other.failures


class UnexpectedError(Exception):
    """A launch went wrong; the text is its kind."""


def failure_rate_bound(failures: int, launches: int) -> float:
    """The highest failure rate under which so few failures have a chance of 5 %, binomially."""
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        chance = sum(
            math.comb(launches, k) * rate**k * (1 - rate) ** (launches - k)
            for k in range(failures + 1)
        )
        low, high = (rate, high) if chance > 1 - CONFIDENCE else (low, rate)
    return high


class Launch:
    """One launch: how it is ended, and what must come of that."""

    def __init__(self, place: Place, port: int, chance: random.Random) -> None:
        self._place = place
        self._port = port
        self._chance = chance
        self._vmm: int | None = None
        self._events: list[str] = []
        self._errors: list[str] = []

    def run(self) -> str:
        """Returns the outcome. Raises UnexpectedError."""
        scenarios: dict[str, Callable[[], tuple[subprocess.Popen[bytes], set[int]]]] = {
            "the app ended by itself": self._ends_by_itself,
            "a server was stopped": self._is_stopped,
            "a signal came while it started": self._is_stopped_early,
            "a second signal came while it stopped": self._is_stopped_twice,
            "SIGKILL came at any time": self._is_killed,
        }
        weights = (25, 25, 20, 10, 20)
        (name,) = self._chance.choices(list(scenarios), weights)
        process, expected = scenarios[name]()
        try:
            status = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise UnexpectedError(f"{name}: no end after {END_SECONDS} s") from None
        finally:
            process.kill()
            process.wait()
            self._reader.join()
        if self._python_was_interrupted(status):
            return f"{name}: Python itself answered SIGINT, before krunclient ran"
        if status not in expected:
            raise UnexpectedError(f"{name}: status {status}, not of {sorted(expected)}")
        if self._errors:
            raise UnexpectedError(f"{name}: {self._errors[0]}")
        if self._vmm is not None and not is_gone_within(GONE_SECONDS, self._vmm):
            late = is_gone_within(LEFT_SECONDS, self._vmm)
            raise UnexpectedError(f"{name}: the VMM is {'gone late' if late else 'left'}")
        self._check_port()
        return f"{name}: {'killed' if status < 0 else 'status'} {abs(status)}"

    def _python_was_interrupted(self, status: int) -> bool:
        """The interpreter has a handler of its own until the first line of krunclient runs."""
        last = self._errors[-1] if self._errors else ""
        return not self._events and status in (1, -signal.SIGINT) and "KeyboardInterrupt" in last

    def _start(self, arguments: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        process = self._place.launcher.start(
            *arguments, str(self._port), "--log-level=info", "--log-format=json"
        )
        self._reader = threading.Thread(target=self._read, args=(process,))
        self._reader.start()
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            try:
                message = json.loads(line)
            except ValueError:
                self._errors.append(f"a line that is no JSON: {line!r}")
                continue
            self._events.append(message["event"])
            if message["event"] == "vmm-started":
                self._vmm = message["vmm_pid"]
            if message["level"] in ("error", "warning"):
                self._errors.append(message["message"])
        process.stderr.close()
        process.stdout.close()

    def _stop_signal(self) -> signal.Signals:
        return self._chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + END_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/", timeout=10):
                    return
            except OSError:
                time.sleep(0.05)

    def _ends_by_itself(self) -> tuple[subprocess.Popen[bytes], set[int]]:
        return self._start(self._place.brief), {BY_ITSELF}

    def _is_stopped(self) -> tuple[subprocess.Popen[bytes], set[int]]:
        process = self._start(self._place.server)
        self._wait_until_it_answers(process)
        process.send_signal(self._stop_signal())
        return process, {ASKED}

    def _is_stopped_early(self) -> tuple[subprocess.Popen[bytes], set[int]]:
        """Python may not run yet, krunclient neither; the guest boots; the app has no trap yet."""
        process = self._start(self._place.server)
        time.sleep(self._chance.uniform(0, 1.3 * self._place.boot_seconds))
        number = self._stop_signal()
        process.send_signal(number)
        return process, {-number, 128 + number, 128 + signal.SIGINT, ASKED}

    def _is_stopped_twice(self) -> tuple[subprocess.Popen[bytes], set[int]]:
        process = self._start(self._place.server)
        self._wait_until_it_answers(process)
        number = self._stop_signal()
        process.send_signal(number)
        time.sleep(self._chance.uniform(0, 0.3))
        process.send_signal(self._stop_signal())
        return process, {ASKED, 128 + number}

    def _is_killed(self) -> tuple[subprocess.Popen[bytes], set[int]]:
        process = self._start(self._place.server)
        time.sleep(self._chance.uniform(0, 1.5 * self._place.boot_seconds))
        process.kill()
        return process, {-signal.SIGKILL}

    def _check_port(self) -> None:
        """Nobody listens any more, and the claim is gone."""
        with socket.socket() as probe, socket.socket(socket.AF_UNIX) as mark:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", self._port))
                mark.bind(f"\0krunclient-port-{self._port}")
            except OSError as error:
                raise UnexpectedError(f"the port is left: {error.strerror}") from None


PATIENCE_SECONDS = 240


@contextmanager
def no_stop_ignored() -> Iterator[None]:
    """A launch that inherits an ignored signal loses it before krunclient's first line.

    A shell has its background jobs, and so us, ignore SIGINT and SIGQUIT.
    """
    ignored = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def soak(place: Place, launches: int, parallel: int, seed: int) -> Results:
    results = Results()
    lock = threading.Lock()
    began = time.monotonic()
    before = leftovers(place)
    # Where nothing goes on, it is told what waits for what.
    faulthandler.dump_traceback_later(PATIENCE_SECONDS, repeat=True)

    def one(number: int) -> None:
        launch = Launch(place, FIRST_PORT + number % PORTS, random.Random(f"{seed} {number}"))
        try:
            outcome = launch.run()
        except UnexpectedError as error:
            outcome = ""
            with lock:
                results.failures[str(error)] += 1
                print(f"launch {number} of seed {seed}: {error}", flush=True)
        with lock:
            results.launches += 1
            if outcome:
                results.outcomes[outcome] += 1
            faulthandler.dump_traceback_later(PATIENCE_SECONDS, repeat=True)
            if results.launches % PROGRESS == 0:
                print(
                    f"{results.launches} launches, {results.failures.total()} failures", flush=True
                )

    with no_stop_ignored(), ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, range(launches)))
    faulthandler.cancel_dump_traceback_later()
    results.seconds = round(time.monotonic() - began, 1)
    for thing in leftovers(place) - before:
        results.failures[f"left: {thing}"] += 1
    return results


def leftovers(place: Place) -> set[str]:
    """The mounts of this namespace, and the files where krunclient may put some."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    files = {str(path) for path in place.launcher.directory.rglob("*")}
    return mounts | files | {str(path) for path in Path(tempfile.gettempdir()).glob("krunclient*")}


def real_place(directory: Path) -> Place:
    executable = directory / "krunclient"
    shutil.copy2(EXECUTABLE, executable)
    cache = directory / "cache"
    cache.mkdir(mode=0o700)
    launcher = Launcher(
        [executable], {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache)}, directory
    )
    brief = busybox_root(directory / "brief", BRIEF_APP)
    server = busybox_root(directory / "server", SERVER)
    boots = []
    for _ in range(2):
        boots.append(launcher.run(brief, str(FIRST_PORT)).seconds)
    return Place(launcher, [server], [brief], boots[-1])


def recorded_place(directory: Path) -> Place:
    """A server that answers once and stops when asked, and an app that ends at once."""
    answers = """
        char request[4096];
        struct pollfd waiting = {.fd = socket_, .events = POLLIN};
        if (poll(&waiting, 1, -1) < 0)
            _exit(94);
        int connection = accept(socket_, NULL, NULL);
        if (read(connection, request, sizeof(request)) < 0
            || write(connection, "HTTP/1.0 200 OK\\r\\n\\r\\n", 19) < 0)
            _exit(95);
        close(connection);
    """
    stops = "signal(SIGINT, leave);"
    for name in ("server", "brief"):
        (directory / name).mkdir()
    head = f"#include <poll.h>\nstatic void leave(int number) {{ _exit(number ? {ASKED} : 0); }}\n"
    server = fake_vmm.build(
        directory / "server",
        head
        + fake_vmm.source(
            stops, fake_vmm.APP_STARTED, fake_vmm.LISTENING, f"for (;;) {{ {answers} }}"
        ),
    )
    brief = fake_vmm.build(directory / "brief", fake_vmm.source(f"_exit({BY_ITSELF});"))
    # Python can lose a SIGINT while it starts, and takes longer for a checkout than for the
    # executable: blocked, it waits for krunclient.
    command = ["env", "--block-signal=INT", sys.executable, "-m", "tests.framework.without_kvm"]
    launcher = Launcher(command, {"PATH": "/usr/bin:/bin", "PYTHONPATH": PYTHONPATH}, directory)
    return Place(launcher, server, brief, launcher.run(*brief, str(FIRST_PORT)).seconds)


def report(results: Results) -> str:
    failures = results.failures.total()
    bound = failure_rate_bound(failures, results.launches)
    lines = [
        f"{results.launches} launches in {results.seconds:.0f} s, {failures} failures.",
        f"By that count, the failure rate is below {bound:.2%} with a confidence of 95 %.",
        "",
        "| what happened | launches |",
        "| --- | --- |",
        *(f"| {outcome} | {count} |" for outcome, count in sorted(results.outcomes.items())),
        *(f"| FAILURE: {kind} | {count} |" for kind, count in sorted(results.failures.items())),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--recorder", action="store_true")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--splits", type=int, default=1, help="of how many shares")
    parser.add_argument("--group", type=int, default=1, help="this is which share")
    parser.add_argument("--combine", type=Path, nargs="+", help="results of shares")
    arguments = parser.parse_args()
    if arguments.combine:
        results = Results()
        for path in arguments.combine:
            read = json.loads(path.read_text())
            results.add(
                Results(
                    read["launches"],
                    read["seconds"],
                    Counter(read["outcomes"]),
                    Counter(read["failures"]),
                )
            )
    else:
        shared = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
        with tempfile.TemporaryDirectory(dir=shared, prefix="krunclient-soak-") as name:
            directory = Path(name)
            directory.chmod(0o755)
            place = recorded_place(directory) if arguments.recorder else real_place(directory)
            launches = arguments.launches // arguments.splits
            results = soak(place, launches, arguments.parallel, arguments.seed + arguments.group)
        kept = ARTEFACTS / f"host-{arguments.group}/soak.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(vars(results)))
    print(report(results))
    # A share leaves it to the sum to fail.
    return 1 if results.failures and arguments.splits == 1 else 0


if __name__ == "__main__":
    sys.exit(main())
