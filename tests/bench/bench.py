"""krunclient beside a launcher in C on the same libraries and root, in alternating runs.

    python -m tests.bench.bench [--short] [--no-vm] [--json FILE] [--plot FILE]

Medians and ratios: on an emulated host the times themselves mean nothing. Start-up is timed
against the recording library, which tells when krun_start_enter was entered; the rest on real VMs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.framework import fake_vmm, guests
from tests.framework.launch import busybox_root
from tests.framework.paths import EXECUTABLE, ROOTFS

PYTHON = "/usr/bin/python3"
SOURCE = Path(__file__).with_name("launcher.c")
PORT = 32000
AT_ONCE = 20
SERVER = "mkdir -p /www; echo hello >/www/index.html; dd if=/dev/zero of=/www/large bs=1M count=16"
SERVER += " 2>/dev/null; exec httpd -f -p 80 -h /www"
GUEST_MIB = 512
LOAD_SECONDS = 5
CLIENTS = 8

# What each ratio may be, from the project's goals, and how much more a noisy machine may show.
GOALS = {
    "start: krunclient to bare Python": 2.5,
    "20 VMs at once: slowest to that of C": 1.5,
}
NOISE = 1.2
PROGRESS = 10

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Candidate:
    """A launcher: its name, and its command for a root and a port."""

    name: str
    command: Callable[[Path, int], list[str]]


class Bench:
    """One place on tmpfs with all that is measured."""

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
        subprocess.run([self.executable, "--version"], env=self.environment, check=True)
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
    subprocess.run(["gcc", "-o", program, SOURCE, libkrun, *flags], check=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """The interquartile range, as a part of the median."""
    if len(values) < 4:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / median(values)


def alternate(runs: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each measure in turn, so that what disturbs the machine disturbs them alike."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(runs):
        if number % PROGRESS == 0:
            print(f"run {number + 1} of {runs}: {', '.join(measures)}", file=sys.stderr, flush=True)
        for name, measure in measures.items():
            results[name].append(measure())
    return results


class StartUp:
    """From exec to the entry of krun_start_enter."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        directory = bench.directory / "recorder"
        directory.mkdir()
        self._arguments = [str(word) for word in fake_vmm.build(directory, "")]
        self._libkrun = Path(self._arguments[1])
        self._program = directory / "launcher"
        compile_c(self._program, self._libkrun)

    def measure(self, runs: int) -> dict[str, list[float]]:
        self._entered(self.krunclient(PORT))  # the cache is warm from here on
        return alternate(
            runs,
            {
                "bare Python": self._bare_python,
                "C": lambda: self._entered(self.c_launcher(PORT)),
                "krunclient": lambda: self._entered(self.krunclient(PORT)),
                "krunclient --sandbox off": lambda: self._entered(
                    [*self.krunclient(PORT), "--sandbox", "off"]
                ),
            },
        )

    def first(self, runs: int) -> list[float]:
        """With nothing extracted yet."""
        seconds = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory(dir=self._bench.directory) as cache:
                os.chmod(cache, 0o700)
                environment = {**self._bench.environment, "XDG_CACHE_HOME": cache}
                seconds.append(self._entered(self.krunclient(PORT), environment))
        return seconds

    def slowest_at_once(self, command: Callable[[int], list[str]]) -> float:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return max(pool.map(lambda n: self._run(command(PORT + n)), range(AT_ONCE)))

    def krunclient(self, port: int) -> list[str]:
        return [str(self._bench.executable), *self._arguments, str(port)]

    def c_launcher(self, port: int) -> list[str]:
        return [str(self._program), str(self._arguments[-1]), str(port)]

    def _bare_python(self) -> float:
        return self._run([PYTHON, "-I", "-S", "-c", "import ctypes"])

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
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=60) as answer:
                    answer.read()
                self.first_answer = time.monotonic() - self.started
                return self
            except OSError:
                assert self.process.poll() is None, "it ended"
                time.sleep(0.005)

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def overhead_mib(self) -> float:
        """Proportional set size of all its processes, without the guest's RAM."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sum(_overhead_mib(int(pid)) for pid in [str(self.process.pid), *children.split()])


def _overhead_mib(pid: int) -> float:
    """A mapping as large as the guest's RAM is the guest's RAM."""
    kib, size = 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1])
        elif line.startswith("Pss:") and size < 0.9 * GUEST_MIB * 1024:
            kib += int(line.split()[1])
    return kib / 1024


def first_answer(bench: Bench, candidate: Candidate) -> float:
    with Running(bench, candidate, PORT) as running:
        return running.first_answer


def end(bench: Bench, candidate: Candidate, port: int = PORT) -> float:
    started = time.monotonic()
    command = candidate.command(bench.brief, port)
    subprocess.run(command, env=bench.environment, check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - started


def stop(bench: Bench, candidate: Candidate, number: signal.Signals) -> float:
    """From the signal to the end: SIGINT is what both pass on to the guest."""
    with Running(bench, candidate, PORT) as running:
        started = time.monotonic()
        running.process.send_signal(number)
        running.process.wait(60)
        return time.monotonic() - started


def memory(bench: Bench, candidate: Candidate, count: int) -> float:
    """Per VM, with so many side by side."""
    print(f"memory of {count} VMs by {candidate.name}", file=sys.stderr, flush=True)
    running = [Running(bench, candidate, PORT + number) for number in range(count)]
    try:
        for one in running:
            one.__enter__()
        return sum(one.overhead_mib() for one in running) / count
    finally:
        for one in running:
            one.__exit__()


def load(bench: Bench, candidate: Candidate, hey: Path) -> dict[str, float]:
    """Requests and bytes per second, and latency in ms, through the mapped port."""
    with Running(bench, candidate, PORT) as running:
        url = f"http://127.0.0.1:{running.port}"
        command = [str(hey), "-z", f"{LOAD_SECONDS}s", "-c", str(CLIENTS)]
        text = subprocess.run(
            [*command, f"{url}/"], check=True, capture_output=True, text=True
        ).stdout
        began = time.monotonic()
        with urllib.request.urlopen(f"{url}/large", timeout=120) as answer:
            size = len(answer.read())
        seconds = time.monotonic() - began

    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        assert found, text
        return float(found[1])

    return {
        "requests/s": number(r"Requests/sec:\s+([\d.]+)"),
        "median ms": 1000 * number(r"50% in ([\d.]+)"),
        "99% ms": 1000 * number(r"99% in ([\d.]+)"),
        "MiB/s": size / 2**20 / seconds,
    }


def system_calls(command: list[str], environment: Environment) -> dict[str, int]:
    """By strace: how many calls, and how many files opened."""
    with tempfile.NamedTemporaryFile("r") as trace:
        subprocess.run(
            ["strace", "-f", "-o", trace.name, *command], env=environment, capture_output=True
        )
        lines = [line for line in trace if re.match(r"\d+ +\w+\(", line)]
    opened = sum(bool(re.match(r"\d+ +open(at)?\(.* = \d+$", line.strip())) for line in lines)
    return {"system calls": len(lines), "files opened": opened}


def stages(bench: Bench) -> list[tuple[str, float]]:
    """Where a launch's time goes, by the events of the JSON log: name, and ms from exec."""
    began = time.time()
    process = subprocess.Popen(
        [*bench.krunclient.command(bench.server, PORT), "--log-level=debug", "--log-format=json"],
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


def measure(bench: Bench, runs: int, vm_runs: int, *, vms: bool) -> dict[str, Any]:
    start_up = StartUp(bench)
    timed = start_up.measure(runs)
    at_once = alternate(
        max(3, runs // 10),
        {
            "C": lambda: start_up.slowest_at_once(start_up.c_launcher),
            "krunclient": lambda: start_up.slowest_at_once(start_up.krunclient),
        },
    )
    results: dict[str, Any] = {
        "start": {name: 1000 * median(values) for name, values in timed.items()},
        "start, spread": {name: spread(values) for name, values in timed.items()},
        "first start": 1000 * median(start_up.first(5)),
        "20 at once, slowest": {name: 1000 * median(values) for name, values in at_once.items()},
        "executable MiB": EXECUTABLE.stat().st_size / 2**20,
        "root file system MiB": sum(
            path.lstat().st_size for path in ROOTFS.rglob("*") if path.is_file()
        )
        / 2**20,
    }
    if shutil.which("strace"):
        results["system calls"] = {
            "krunclient": system_calls(start_up.krunclient(PORT), bench.environment),
            "C": system_calls(start_up.c_launcher(PORT), bench.environment),
        }
    if vms:
        results.update(measure_vms(bench, vm_runs))
    return results


def measure_vms(bench: Bench, runs: int) -> dict[str, Any]:
    ours, theirs = bench.krunclient, bench.c_launcher

    def at_once(candidate: Candidate) -> float:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return max(pool.map(lambda n: end(bench, candidate, PORT + n), range(AT_ONCE)))

    def both(measure: Callable[[Bench, Candidate], float]) -> dict[str, list[float]]:
        return alternate(
            runs, {"C": lambda: measure(bench, theirs), "krunclient": lambda: measure(bench, ours)}
        )

    results: dict[str, Any] = {
        "first answer": both(first_answer),
        "end": both(end),
        "stop by SIGINT": both(lambda b, c: stop(b, c, signal.SIGINT)),
        "stop by SIGTERM": {"krunclient": [stop(bench, ours, signal.SIGTERM)]},
    }
    results = {
        name: {who: 1000 * median(values) for who, values in found.items()}
        for name, found in results.items()
    }
    results["20 VMs at once, slowest end"] = {c.name: 1000 * at_once(c) for c in (theirs, ours)}
    results["memory MiB per VM"] = {
        str(count): {c.name: memory(bench, c, count) for c in (theirs, ours)}
        for count in (1, 5, 10)
    }
    hey = shutil.which("hey") or str(guests.HEY)
    results["load"] = {
        name: load(bench, candidate, Path(hey))
        for name, candidate in (("C", theirs), ("krunclient", ours), ("C again", theirs))
    }
    results["stages"] = stages(bench)
    return results


def ratios(results: dict[str, Any]) -> dict[str, float]:
    start = results["start"]
    bare = start["bare Python"]
    found = {
        "start: krunclient to bare Python": start["krunclient"] / bare,
        "start: C to bare Python": start["C"] / bare,
        "start: the sandbox, in bare Pythons": (
            start["krunclient"] - start["krunclient --sandbox off"]
        )
        / bare,
        "first start, in bare Pythons": results["first start"] / bare,
    }
    if "first answer" in results:
        at_once = results["20 VMs at once, slowest end"]
        found["20 VMs at once: slowest to that of C"] = at_once["krunclient"] / at_once["C"]
        memory_of = results["memory MiB per VM"]
        for count, values in memory_of.items():
            found[f"memory of {count} VMs: krunclient less C, MiB"] = (
                values["krunclient"] - values["C"]
            )
        for name in ("first answer", "end", "stop by SIGINT"):
            difference = results[name]["krunclient"] - results[name]["C"]
            found[f"{name}: difference to C, in bare Pythons"] = difference / bare
        for name, value in results["load"]["krunclient"].items():
            found[f"{name}: krunclient to C"] = value / results["load"]["C"][name]
            found[f"{name}: C to C"] = results["load"]["C again"][name] / results["load"]["C"][name]
    return found


def table(results: dict[str, Any]) -> str:
    lines = ["| measured | value |", "| --- | --- |"]

    def rows(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for inner, one in value.items():
                rows(f"{name}: {inner}", one)
        elif isinstance(value, list):
            for inner, one in value:
                rows(f"{name}: {inner}", one)
        else:
            lines.append(f"| {name} | {value:.3g} |")

    for name, value in results.items():
        rows(name, value)
    lines += ["", "| ratio | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:.2f} |" for name, value in ratios(results).items()]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """One bar, stage by stage."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.8))
    before = 0.0
    for event, at in results["stages"]:
        axes.barh(0, at - before, left=before, label=f"to {event}: {at - before:.0f} ms")
        before = at
    axes.set_yticks([])
    axes.set_xlabel("ms from exec")
    axes.legend(ncols=3, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.6))
    figure.savefig(path, bbox_inches="tight")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer runs, and fail on the goals")
    parser.add_argument("--no-vm", action="store_true", help="start-up alone")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--read", type=Path, help="results to show, instead of new ones")
    parser.add_argument("--plot", type=Path, help="where to write the plot")
    arguments = parser.parse_args()
    runs, vm_runs = (15, 2) if arguments.short else (60, 5)
    if arguments.read:
        results = json.loads(arguments.read.read_text())
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="krunclient-bench-") as name:
            directory = Path(name)
            directory.chmod(0o755)
            results = measure(Bench(directory), runs, vm_runs, vms=not arguments.no_vm)
    print(table(results))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1))
    if arguments.plot and "stages" in results:
        plot(results, arguments.plot)
    found = ratios(results)
    missed = [name for name, goal in GOALS.items() if found.get(name, 0) > goal * NOISE]
    for name in missed:
        print(f"missed: {name} is {found[name]:.2f}, and may be {GOALS[name]}")
    return 1 if missed and arguments.short else 0


if __name__ == "__main__":
    sys.exit(main())
