"""What a launch imports: start-up is a feature, and each module costs."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.framework.paths import TOP

MAIN = "krunclient.__main__"
SUPERVISOR = (
    "krunclient.supervisor.mappedport, krunclient.supervisor.watch, krunclient.supervisor.verdict"
)


def listed(name: str) -> set[str]:
    """A constant of the module that packs what a launch imports."""
    for one in ast.parse((TOP / "krunclient/zipapp/extract.py").read_text()).body:
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == name:
            return set(ast.literal_eval(one.value))
    raise AssertionError(name)


BEFORE_THE_FORK = listed("BEFORE_THE_FORK")
# What each of the two processes alone needs it imports after the fork, beside the other.
IN_THE_VMM = listed("IN_THE_VMM")
IN_THE_SUPERVISOR = listed("IN_THE_SUPERVISOR")
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
