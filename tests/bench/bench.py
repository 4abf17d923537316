"""krunclient beside a launcher in C on the same libraries and root, in alternating runs.

    python -m tests.bench.bench --prepare
    python -m tests.bench.bench --json FILE [--short | --no-vm | --clients]
    python -m tests.bench.bench --read FILE [--plot FILE]

Medians and ratios: on an emulated host the times themselves mean nothing. Start-up is timed
against the recording library, which tells when krun_start_enter was entered; the rest on real VMs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import debian
from tests.bench import beside, calls, microvms, report
from tests.bench.candidates import (
    AT_ONCE,
    FIRST_PORT,
    Bench,
    alternate,
    median,
    progress,
    spread,
    unhung,
)
from tests.bench.report import Results
from tests.bench.start_up import Cost, StartUp
from tests.framework.counts import ENTERED, Calls, system_calls
from tests.framework.paths import EXECUTABLE, ROOTFS


@dataclass(frozen=True)
class Extent:
    """In how many runs each is measured; what is not named is left out."""

    starts: int
    first_starts: int
    starts_at_once: int = 0
    system_calls: bool = False
    filtered_calls: bool = False
    served: int = 0
    ended: int = 0
    memory_of: Sequence[int] = ()
    vms_at_once: int = 0
    loads: int = 0
    beside_others: int = 0


WITHOUT_VMS = Extent(
    starts=60, first_starts=5, starts_at_once=5, system_calls=True, filtered_calls=True
)
WHOLE = replace(
    WITHOUT_VMS,
    filtered_calls=False,  # those of an emulated processor say nothing of another's
    served=20,
    ended=10,
    memory_of=(1, 5, 10),
    vms_at_once=2,
    loads=30,
    beside_others=50,
)
SHORT = Extent(starts=12, first_starts=2, served=6, memory_of=(1,))
CLIENTS = Extent(starts=3, first_starts=1, beside_others=50)


def measure(extent: Extent) -> Results:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="krunclient-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        bench = Bench(directory)
        return _gather(chain(_start_up(bench, extent), _vms(bench, extent)))


def _gather(parts: Iterator[Results]) -> Results:
    """Each is shown as it comes: a run of the whole is long, and may fail at its end."""
    results: Results = {}
    for part in parts:
        progress(json.dumps(part))
        results.update(part)
    return results


def _start_up(bench: Bench, extent: Extent) -> Iterator[Results]:
    yield {
        "processors": len(os.sched_getaffinity(0)),
        "executable, MiB": EXECUTABLE.stat().st_size / 2**20,
        "root file system, MiB": _size(ROOTFS) / 2**20,
    }
    start_up = StartUp(bench)
    costs = start_up.measure(extent.starts)
    yield _timed("start", {name: [one.real for one in each] for name, each in costs.items()})
    yield _in_bare_pythons(costs)
    first = [one.real for one in start_up.first(extent.first_starts)]
    yield {"first start, ms": 1000 * median(first)}
    if extent.starts_at_once:
        at_once = {
            "C": lambda: start_up.slowest_at_once(start_up.c_launcher),
            "krunclient": lambda: start_up.slowest_at_once(start_up.krunclient),
        }
        what = f"{AT_ONCE} starts at once, slowest"
        yield _timed(what, alternate(what, extent.starts_at_once, at_once))
    if extent.system_calls:
        environment = start_up.launch.environment
        commands = {"krunclient": start_up.krunclient, "C": start_up.c_launcher}
        yield {
            "a launch's": {
                name: _counted(system_calls(command(FIRST_PORT), environment, ENTERED))
                for name, command in commands.items()
            }
        }
    if extent.filtered_calls:
        yield {"calls, ns": calls.measure(bench.directory)}


def _vms(bench: Bench, extent: Extent) -> Iterator[Results]:
    if extent.served:
        for what, seconds in microvms.served(bench, extent.served).items():
            yield _timed(what, seconds)
    if extent.ended:
        yield _timed("end", microvms.ended(bench, extent.ended))
    if extent.memory_of:
        yield {
            "memory per VM, MB": {
                str(count): {
                    one.name: unhung(partial(microvms.memory, bench, one, count))
                    for one in bench.both
                }
                for count in extent.memory_of
            }
        }
    if extent.loads:
        yield {"load": microvms.load(bench, extent.loads)}
        yield {"stages, ms from exec": microvms.stages(bench)}
    if extent.beside_others:
        yield {"beside other clients": beside.measure(bench, extent.beside_others)}
    if extent.vms_at_once:
        slowest = microvms.slowest_end(bench, extent.vms_at_once)
        yield _timed(f"{AT_ONCE} VMs at once, slowest end", slowest)


def _counted(calls: Calls) -> dict[str, int]:
    return {"system calls": calls.made, "files opened": calls.opened}


def _in_bare_pythons(costs: Mapping[str, Sequence[Cost]]) -> Results:
    """The median of what each launch took to the bare Python beside it."""
    bare = costs["bare Python"]
    pairs = {name: list(zip(each, bare, strict=True)) for name, each in costs.items()}
    return {
        "start, in bare Pythons": {
            name: median([one.real / beside.real for one, beside in each])
            for name, each in pairs.items()
        },
        "start, processor time in bare Pythons": {
            name: median([one.processor / beside.processor for one, beside in each])
            for name, each in pairs.items()
        },
    }


def _timed(what: str, seconds: Mapping[str, Sequence[float]]) -> Results:
    return {
        f"{what}, ms": {name: 1000 * median(values) for name, values in seconds.items()},
        f"{what}, spread": {name: spread(values) for name, values in seconds.items()},
    }


def _size(tree: Path) -> int:
    return sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer runs")
    parser.add_argument("--no-vm", action="store_true", help="start-up alone")
    parser.add_argument("--clients", action="store_true", help="a server's other clients alone")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--prepare", action="store_true", help="install what it needs")
    which.add_argument("--json", type=Path, help="measure, and write the results there")
    which.add_argument("--read", type=Path, help="show these results; 1 when a goal is missed")
    parser.add_argument("--plot", type=Path, help="where to write the plot")
    arguments = parser.parse_args()
    if arguments.prepare:
        debian.require("counts")
        return 0
    if arguments.json:
        asked = {"no_vm": WITHOUT_VMS, "short": SHORT, "clients": CLIENTS}
        extents = [extent for name, extent in asked.items() if getattr(arguments, name)]
        results = measure(next(iter(extents), WHOLE))
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1))
        return 0
    results = json.loads(arguments.read.read_text())
    print(report.table(results))
    if arguments.plot and "stages, ms from exec" in results:
        report.plot(results, arguments.plot)
    missed = report.missed(results, margin=1)
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
