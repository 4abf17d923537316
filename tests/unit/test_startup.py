"""What a launch imports: start-up is a feature, and each module costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.framework.paths import TOP

MAIN = "krunclient.__main__"
BEFORE_THE_FORK = {
    "krunclient",
    "krunclient.__main__",
    "krunclient.address",
    "krunclient.bindings",
    "krunclient.bindings.declare",
    "krunclient.bindings.libc",
    "krunclient.claims",
    "krunclient.cli",
    "krunclient.config",
    "krunclient.errors",
    "krunclient.host",
    "krunclient.libraries",
    "krunclient.log",
    "krunclient.memory",
    "krunclient.plan",
    "krunclient.program",
    "krunclient.record",
    "krunclient.report",
    "krunclient.sandbox",
    "krunclient.sandbox.mounts",
    "krunclient.sandbox.policy",
    "krunclient.sandbox.privileges",
    "krunclient.secret",
    "krunclient.supervisor",
}
# What each of the two processes alone needs it imports after the fork, beside the other.
IN_THE_VMM = {
    "krunclient.bindings.libkrun",
    "krunclient.initconfig",
    "krunclient.sandbox.landlock",
    "krunclient.sandbox.lifeline",
    "krunclient.sandbox.seccomp",
    "krunclient.vm",
    "krunclient.vmm",
    "krunclient.vmmlog",
}
IN_THE_SUPERVISOR = {
    "krunclient.readiness",
    "krunclient.sandbox.network",
    "krunclient.sandbox.seccomp",
    "krunclient.vmmlog",
    "krunclient.watch",
}
STANDARD = "import sys, __future__, ctypes, errno, fcntl, os, select, stat, time"
LIST = 'print("\\n".join(sorted(sys.modules)))'


def modules(script: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", script]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        (MAIN, BEFORE_THE_FORK),
        (f"{MAIN}, krunclient.vmm", BEFORE_THE_FORK | IN_THE_VMM),
        (f"{MAIN}, krunclient.watch", BEFORE_THE_FORK | IN_THE_SUPERVISOR),
    ],
)
def test_a_launch_imports_these_modules_and_no_other(imports: str, expected: set[str]) -> None:
    launch = modules(f"import sys; sys.path.insert(0, {str(TOP)!r}); import {imports}; {LIST}")
    assert launch - modules(f"{STANDARD}; {LIST}") == expected
