"""What a launch imports: start-up is a feature, and each module costs."""

from __future__ import annotations

import subprocess
import sys

from tests.framework.paths import TOP

MAIN = "krunclient.__main__"
OURS = {
    "krunclient",
    "krunclient.__main__",
    "krunclient.address",
    "krunclient.bindings",
    "krunclient.bindings.declare",
    "krunclient.bindings.libc",
    "krunclient.bindings.libkrun",
    "krunclient.claims",
    "krunclient.cli",
    "krunclient.config",
    "krunclient.errors",
    "krunclient.host",
    "krunclient.initconfig",
    "krunclient.libraries",
    "krunclient.log",
    "krunclient.memory",
    "krunclient.plan",
    "krunclient.program",
    "krunclient.readiness",
    "krunclient.record",
    "krunclient.sandbox",
    "krunclient.sandbox.landlock",
    "krunclient.sandbox.lifeline",
    "krunclient.sandbox.mounts",
    "krunclient.sandbox.network",
    "krunclient.sandbox.privileges",
    "krunclient.sandbox.seccomp",
    "krunclient.secret",
    "krunclient.supervisor",
    "krunclient.vm",
    "krunclient.vmm",
    "krunclient.vmmlog",
    "krunclient.watch",
}
STANDARD = "import sys, __future__, ctypes, errno, fcntl, os, select, stat, time"
LIST = 'print("\\n".join(sorted(sys.modules)))'


def modules(script: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", script]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_a_launch_imports_these_modules_and_no_other() -> None:
    launch = modules(f"import sys; sys.path.insert(0, {str(TOP)!r}); import {MAIN}; {LIST}")
    assert launch - modules(f"{STANDARD}; {LIST}") == OURS
