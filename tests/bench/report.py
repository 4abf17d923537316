"""What was measured, as ratios beside their goals, as a table, and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Results = dict[str, Any]

# The most that each ratio may be. A short form on a machine under load may show more.
GOALS = {
    "start: krunclient to bare Python": 2.5,
    "first start: to bare Python": 30,
    "first answer: later than C, in bare Pythons": 3,
    "20 VMs at once: slowest to that of C": 1.5,
    "memory of 1 VM, MiB": 50,
    "memory of 1 VM: more than C, MiB": 10,
    "executable, MiB": 16,
    "root file system, MiB": 8,
}


def ratios(results: Results) -> dict[str, float]:
    """What means something on an emulated host as well. What was not measured is not in it."""
    start = results["start, ms"]
    bare = start["bare Python"]
    found = {
        "start: krunclient to bare Python": start["krunclient"] / bare,
        "start: C to bare Python": start["C"] / bare,
        "start: the sandbox, in bare Pythons": (
            start["krunclient"] - start["krunclient --sandbox off"]
        )
        / bare,
        "first start: to bare Python": results["first start, ms"] / bare,
        "executable, MiB": results["executable, MiB"],
        "root file system, MiB": results["root file system, MiB"],
    }
    for name in ("first answer", "end", "stop"):
        if values := results.get(f"{name}, ms"):
            found[f"{name}: later than C, in bare Pythons"] = (
                values["krunclient"] - values["C"]
            ) / bare
    if values := results.get("20 VMs at once, slowest end, ms"):
        found["20 VMs at once: slowest to that of C"] = values["krunclient"] / values["C"]
    for count, values in results.get("memory per VM, MiB", {}).items():
        what = f"memory of {count} VM{'s' if int(count) > 1 else ''}"
        found[f"{what}, MiB"] = values["krunclient"]
        found[f"{what}: more than C, MiB"] = values["krunclient"] - values["C"]
    if values := results.get("load"):
        for unit in values["C"]:
            found[f"{unit}: krunclient to C"] = values["krunclient"][unit] / values["C"][unit]
            found[f"{unit}: C to C"] = values["C again"][unit] / values["C"][unit]
    return found


def missed(results: Results, margin: float) -> list[str]:
    """The goals that were missed by more than a factor, a line each."""
    found = ratios(results)
    return [
        f"{name} is {found[name]:.2f}, and may be {goal:g}"
        for name, goal in GOALS.items()
        if name in found and found[name] > goal * margin
    ]


def table(results: Results) -> str:
    lines = ["| measured | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3g} |" for name, value in _flat(results)]
    lines += ["", "| ratio | value | goal |", "| --- | --- | --- |"]
    for name, value in ratios(results).items():
        goal = f"≤ {GOALS[name]:g}" if name in GOALS else ""
        lines.append(f"| {name} | {value:.2f} | {goal} |")
    return "\n".join(lines)


def _flat(results: Results) -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = []
    for name, value in results.items():
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
