"""krunclient beside a launcher in C on the same libraries and root, in alternating runs.

    python -m tests.bench.bench --prepare
    python -m tests.bench.bench --json FILE [--short | --no-vm]
    python -m tests.bench.bench --read FILE [--plot FILE]

Medians and ratios: on an emulated host the times themselves mean nothing. Start-up is timed
against the recording library, which tells when krun_start_enter was entered; the rest on real VMs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import microvms, report
from tests.bench.candidates import Bench, alternate, median, spread
from tests.bench.report import Results
from tests.bench.start_up import StartUp, system_calls
from tests.framework.paths import EXECUTABLE, ROOTFS

import debian  # isort: skip


@dataclass(frozen=True)
class Extent:
    """What is measured, and in how many runs each; what is not named is left out."""

    starts: int
    first_starts: int
    starts_at_once: int = 0
    system_calls: bool = False
    vms: int = 0
    timed: Sequence[str] = ()
    memory_of: Sequence[int] = ()
    vms_at_once: int = 0
    loads: int = 0


WITHOUT_VMS = Extent(starts=60, first_starts=5, starts_at_once=5, system_calls=True)
WHOLE = replace(
    WITHOUT_VMS,
    vms=15,
    timed=tuple(microvms.TIMED),
    memory_of=(1, 5, 10),
    vms_at_once=20,
    loads=7,
)
# Boots on an emulated host differ too much for a few of them to tell anything.
SHORT = Extent(starts=20, first_starts=3, memory_of=(1,))


def measure(extent: Extent) -> Results:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="krunclient-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        bench = Bench(directory)
        return {**_start_up(bench, extent), **_vms(bench, extent)}


def _start_up(bench: Bench, extent: Extent) -> Results:
    start_up = StartUp(bench)
    timed = start_up.measure(extent.starts)
    results: Results = {
        "start, ms": _milliseconds(timed),
        "start, spread": {name: spread(values) for name, values in timed.items()},
        "first start, ms": 1000 * median(start_up.first(extent.first_starts)),
        "executable, MiB": EXECUTABLE.stat().st_size / 2**20,
        "root file system, MiB": _size(ROOTFS) / 2**20,
    }
    if extent.starts_at_once:
        at_once = {
            "C": lambda: start_up.slowest_at_once(start_up.c_launcher),
            "krunclient": lambda: start_up.slowest_at_once(start_up.krunclient),
        }
        results["20 starts at once, slowest, ms"] = _milliseconds(
            alternate("20 starts at once", extent.starts_at_once, at_once)
        )
    if extent.system_calls:
        results["a launch's"] = {
            "krunclient": system_calls(start_up.krunclient(32000), bench.environment),
            "C": system_calls(start_up.c_launcher(32000), bench.environment),
        }
    return results


def _vms(bench: Bench, extent: Extent) -> Results:
    both = (bench.c_launcher, bench.krunclient)
    results: Results = {}
    for what in extent.timed:
        results[f"{what}, ms"] = _milliseconds(microvms.beside_c(bench, what, extent.vms))
    if extent.memory_of:
        results["memory per VM, MiB"] = {
            str(count): {one.name: microvms.memory(bench, one, count) for one in both}
            for count in extent.memory_of
        }
    if extent.vms_at_once:
        results[f"{extent.vms_at_once} VMs at once, slowest end, ms"] = {
            one.name: 1000 * microvms.slowest_end(bench, one, extent.vms_at_once) for one in both
        }
    if extent.loads:
        candidates = [(one.name, one) for one in both] + [("C again", bench.c_launcher)]
        results["load"] = microvms.load(bench, candidates, extent.loads)
        results["stages, ms from exec"] = microvms.stages(bench)
    return results


def _milliseconds(timed: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: 1000 * median(values) for name, values in timed.items()}


def _size(tree: Path) -> int:
    return sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer runs")
    parser.add_argument("--no-vm", action="store_true", help="start-up alone")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--prepare", action="store_true", help="install what it needs")
    which.add_argument("--json", type=Path, help="measure, and write the results there")
    which.add_argument("--read", type=Path, help="show these results; 1 when a goal is missed")
    parser.add_argument("--plot", type=Path, help="where to write the plot")
    arguments = parser.parse_args()
    if arguments.prepare:
        debian.require({"strace": "strace"})
        return 0
    if arguments.json:
        results = measure(WITHOUT_VMS if arguments.no_vm else SHORT if arguments.short else WHOLE)
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
