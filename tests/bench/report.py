"""What was measured, as ratios beside their goals, as a table, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.candidates import median

Results = dict[str, Any]

VMS = ("1 VM", "5 VMs", "10 VMs")
GOALS = {
    "start: krunclient to bare Python": 2.2,
    "first start: to bare Python": 15,
    "first start on one processor: to bare Python": 26,
    "a KVM ioctl: under the filter to without": 1.3,
    "a send and its receipt: under the filter to without": 1.3,
    "first answer: later than C, in bare Pythons": 3,
    "20 VMs at once: slowest to that of C": 1.5,
    **{f"memory of {count}, MB": 50 for count in VMS},
    **{f"memory of {count}: more than C, MB": 10 for count in VMS},
    "executable, MiB": 16,
    "root file system, MiB": 8,
}
LOAD_UNITS = ("requests/s", "median ms", "99% ms", "MiB/s")
WORSE_UNDER_LOAD = 0.02  # or as much as two runs of C differ


def ratios(results: Results) -> dict[str, float]:
    """What means something on an emulated host as well. What was not measured is not in it."""
    start, processor = (
        results[f"start, {what}in bare Pythons"] for what in ("", "processor time ")
    )
    found = {
        "start: krunclient to bare Python": start["krunclient"],
        "start: C to bare Python": start["C"],
        "start: the sandbox, in bare Pythons": (
            start["krunclient"] - start["krunclient --sandbox off"]
        ),
        "start: processor time of krunclient to bare Python": processor["krunclient"],
        f"first start{'' if results['processors'] > 1 else ' on one processor'}: to bare Python": (
            results["first start, ms"] / results["start, ms"]["bare Python"]
        ),
        "executable, MiB": results["executable, MiB"],
        "root file system, MiB": results["root file system, MiB"],
    }
    if values := results.get("first answer, ms"):
        later = values["krunclient"] - values["C"]
        found["first answer: later than C, in bare Pythons"] = later / values["bare Python"]
    for name in ("end", "stop"):
        if values := results.get(f"{name}, ms"):
            found[f"{name}: krunclient to C"] = values["krunclient"] / values["C"]
    if values := results.get("20 VMs at once, slowest end, ms"):
        found["20 VMs at once: slowest to that of C"] = values["krunclient"] / values["C"]
    for name, values in results.get("calls, ns", {}).items():
        found[f"{name}: under the filter to without"] = (
            values["under it"] / values["without the filter"]
        )
    for count, values in results.get("memory per VM, MB", {}).items():
        what = f"memory of {count} VM{'s' if int(count) > 1 else ''}"
        found[f"{what}, MB"] = values["krunclient"]
        found[f"{what}: more than C, MB"] = values["krunclient"] - values["C"]
    for unit in LOAD_UNITS if "load" in results else ():
        found[f"{unit}: worse than C by"] = median(_worse(results, "krunclient", unit))
        between_two = [abs(part) for part in _worse(results, "C again", unit)]
        found[f"{unit}: two runs of C differ by"] = median(between_two)
    return found


def _worse(results: Results, name: str, unit: str) -> list[float]:
    """By what part each run's value is worse than that of C's run beside it."""
    better = -1 if unit.endswith("/s") else 1
    pairs = zip(results["load"][name], results["load"]["C"], strict=True)
    return [better * (run[unit] / beside[unit] - 1) for run, beside in pairs]


def goals(found: Mapping[str, float]) -> dict[str, float]:
    """The most that each ratio may be."""
    load = {
        f"{unit}: worse than C by": max(WORSE_UNDER_LOAD, found[f"{unit}: two runs of C differ by"])
        for unit in LOAD_UNITS
        if f"{unit}: worse than C by" in found
    }
    return {**GOALS, **load}


def missed(results: Results, margin: float) -> list[str]:
    """The goals that were missed by more than a factor, a line each."""
    found = ratios(results)
    return [
        f"{name} is {found[name]:.2f}, and may be {goal:g}"
        for name, goal in goals(found).items()
        if name in found and found[name] > goal * margin
    ]


def table(results: Results) -> str:
    lines = ["| measured | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3g} |" for name, value in _flat(results)]
    lines += ["", "| ratio | value | goal |", "| --- | --- | --- |"]
    found = ratios(results)
    most = goals(found)
    for name, value in found.items():
        goal = f"≤ {most[name]:.3g}" if name in most else ""
        lines.append(f"| {name} | {value:.3f} | {goal} |")
    return "\n".join(lines)


def _flat(results: Results) -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = []
    for name, value in results.items():
        if name == "load":
            value = {
                who: {unit: median([run[unit] for run in runs]) for unit in LOAD_UNITS}
                for who, runs in value.items()
            }
        if isinstance(value, dict):
            rows += [(f"{name}: {inner}", one) for inner, one in _flat(value)]
        elif isinstance(value, list):
            rows += [(f"{name}: {inner}", one) for inner, one in value]
        else:
            rows.append((name, value))
    return rows


def plot(results: Results, path: Path) -> None:
    """A launch's stages: the whole of it, and what comes before the VM is made."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    stages = results["stages, ms from exec"]
    before_the_vm = [event for event, _ in stages].index("confined") + 1
    figure, rows = pyplot.subplots(2, figsize=(9, 3.6), layout="constrained")
    titles = ("to the first connection", "of that, krunclient's own part")
    for axes, title, shown in zip(rows, titles, (stages, stages[:before_the_vm]), strict=True):
        before = 0.0
        for event, at in shown:
            axes.barh(0, at - before, left=before, label=f"to {event}: {at - before:.0f} ms")
            before = at
        axes.set_yticks([])
        axes.set_title(title, fontsize="medium", loc="left")
        axes.legend(ncols=len(shown), fontsize="small", loc="lower center")
        axes.set_ylim(-1.2, 0.5)
    rows[-1].set_xlabel("ms from exec")
    figure.savefig(path, metadata={"Date": None})
