"""What krunclient shows of VMs, read back: --list, and the files of --metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.framework.launch import HANGS_AFTER, Launcher


def listed(launcher: Launcher, ports: Container[int]) -> dict[int, dict[str, Any]]:
    """Those of some ports: others of the machine's may run meanwhile."""
    ended = launcher.run("--list", "--log-format=json")
    assert (ended.status, ended.stderr) == (0, b"")
    return {vm["port"]: vm for vm in json.loads(ended.stdout) if vm["port"] in ports}


def phases(launcher: Launcher, ports: Container[int]) -> dict[int, str]:
    return {port: vm["phase"] for port, vm in listed(launcher, ports).items()}


def measured(path: Path) -> dict[str, float]:
    """By a metric's name, and by the phase that it names."""
    families = text_string_to_metric_families(path.read_text())
    samples = [sample for family in families for sample in family.samples]
    return {sample.labels.get("phase", sample.name): sample.value for sample in samples}


def wait_until(condition: Callable[[], bool], seconds: float = HANGS_AFTER) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
