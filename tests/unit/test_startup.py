"""What a launch imports: start-up is a feature, and each module costs."""

from __future__ import annotations

import subprocess
import sys

from tests.framework.paths import TOP

SCRIPT = """
import sys
sys.path.insert(0, {top!r})
import krunclient.__main__
import _ctypes, select
print("\\n".join(sorted(sys.modules)))
"""
OURS = {
    "krunclient",
    "krunclient.__main__",
    "krunclient.bindings",
    "krunclient.bindings.declare",
    "krunclient.bindings.libc",
    "krunclient.bindings.libkrun",
    "krunclient.cli",
    "krunclient.config",
    "krunclient.errors",
    "krunclient.host",
    "krunclient.initconfig",
    "krunclient.libraries",
    "krunclient.log",
    "krunclient.plan",
    "krunclient.program",
    "krunclient.record",
    "krunclient.secret",
    "krunclient.supervisor",
    "krunclient.vm",
}
STANDARD = {"__future__", "_ctypes", "_struct", "ctypes", "ctypes._endian", "select", "struct"}


def modules(script: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", script]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_a_launch_imports_these_modules_and_no_other() -> None:
    bare = modules('import sys; print("\\n".join(sys.modules))')
    assert modules(SCRIPT.format(top=str(TOP))) - bare <= OURS | STANDARD
