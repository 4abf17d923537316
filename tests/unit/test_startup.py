"""What a launch imports: start-up is a feature, and each module costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.framework.paths import TOP

MAIN = "krunclient.__main__"
SUPERVISOR = (
    "krunclient.supervisor.mappedport, krunclient.supervisor.watch, krunclient.supervisor.verdict"
)
BEFORE_THE_FORK = {
    "krunclient",
    "krunclient.__main__",
    "krunclient.bindings",
    "krunclient.bindings.arch",
    "krunclient.bindings.declare",
    "krunclient.bindings.libc",
    "krunclient.cli",
    "krunclient.config",
    "krunclient.errors",
    "krunclient.host",
    "krunclient.host.elf",
    "krunclient.host.facts",
    "krunclient.host.kvm",
    "krunclient.host.libraries",
    "krunclient.host.program",
    "krunclient.log",
    "krunclient.model",
    "krunclient.options",
    "krunclient.plan",
    "krunclient.record",
    "krunclient.report",
    "krunclient.sandbox",
    "krunclient.sandbox.confinement",
    "krunclient.sandbox.landlock",
    "krunclient.sandbox.mounts",
    "krunclient.sandbox.process",
    "krunclient.secret",
    "krunclient.supervisor",
    "krunclient.supervisor.children",
    "krunclient.supervisor.claims",
    "krunclient.supervisor.memory",
    "krunclient.supervisor.run",
    "krunclient.supervisor.usage",
}
# What each of the two processes alone needs it imports after the fork, beside the other.
IN_THE_VMM = {
    "krunclient.bindings.libkrun",
    "krunclient.sandbox.confine",
    "krunclient.sandbox.lifeline",
    "krunclient.sandbox.privileges",
    "krunclient.sandbox.seccomp",
    "krunclient.vmm",
    "krunclient.vmm.descriptors",
    "krunclient.vmm.initfile",
    "krunclient.vmm.main",
    "krunclient.vmm.start",
}
IN_THE_SUPERVISOR = {
    "krunclient.supervisor.announce",
    "krunclient.supervisor.layer",
    "krunclient.supervisor.libkrunlog",
    "krunclient.supervisor.loop",
    "krunclient.supervisor.mappedport",
    "krunclient.supervisor.notifications",
    "krunclient.supervisor.presence",
    "krunclient.supervisor.readiness",
    "krunclient.supervisor.sockets",
    "krunclient.supervisor.stalls",
    "krunclient.supervisor.tcptable",
    "krunclient.supervisor.verdict",
    "krunclient.supervisor.watch",
}
STANDARD = "import sys, __future__, ctypes, errno, fcntl, gc, os, select, stat, time"
LIST = 'print("\\n".join(sorted(sys.modules)))'


def modules(script: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", script]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        (MAIN, BEFORE_THE_FORK),
        (f"{MAIN}, krunclient.vmm.main", BEFORE_THE_FORK | IN_THE_VMM),
        (f"{MAIN}, {SUPERVISOR}", BEFORE_THE_FORK | IN_THE_SUPERVISOR),
    ],
)
def test_a_launch_imports_these_modules_and_no_other(imports: str, expected: set[str]) -> None:
    launch = modules(f"import sys; sys.path.insert(0, {str(TOP)!r}); import {imports}; {LIST}")
    assert launch - modules(f"{STANDARD}; {LIST}") == expected
