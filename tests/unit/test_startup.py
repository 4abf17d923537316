"""What a launch imports: start-up is a feature, and each module costs."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests.framework.paths import TOP


def listed(name: str) -> list[str]:
    """A constant of the module that packs what a launch imports."""
    for one in ast.parse((TOP / "krunclient/zipapp/extract.py").read_text()).body:
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == name:
            return list(ast.literal_eval(one.value))
    raise AssertionError(name)


def imported_at_the_top(name: str) -> set[str]:
    """Of krunclient's own modules, and packages."""
    path = TOP.joinpath(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for one in ast.parse(source.read_text()).body:
        if isinstance(one, ast.ImportFrom) and str(one.module).startswith("krunclient"):
            names |= {str(one.module), *(f"{one.module}.{alias.name}" for alias in one.names)}
    return names


LAUNCH = listed("LAUNCH")
STANDARD = "import sys, __future__, ctypes, errno, fcntl, gc, os, select, stat, time"
# From Python 3.14 on, the first structure imports more.
STANDARD += "; type('Any', (ctypes.Structure,), {'_fields_': ()})"
LIST = 'print("\\n".join(sorted(sys.modules)))'


def modules(script: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", script]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_a_launch_imports_these_modules_and_no_other() -> None:
    imports = "import krunclient.__main__"
    launch = modules(f"import sys; sys.path.insert(0, {str(TOP)!r}); {imports}; {LIST}")
    assert launch - modules(f"{STANDARD}; {LIST}") == set(LAUNCH)


def test_each_module_stands_after_those_that_it_imports() -> None:
    there: set[str] = set()
    for name in LAUNCH:
        assert imported_at_the_top(name) & {*LAUNCH} <= there, name
        assert name.rpartition(".")[0] in {*there, ""}, name
        there.add(name)
