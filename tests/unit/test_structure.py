"""How the package hangs together: who may import whom, and how large a thing may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.paths import TOP

PACKAGE = TOP / "krunclient"
FOUNDATION = ("errors", "record", "secret")
# A room, and the rooms that it may import. Each stands on those above it, and none imports
# upwards; the supervisor and the VMM never import each other.
MAY_IMPORT = {
    "errors": (),
    "record": (),
    "secret": (),
    "bindings": ("record",),
    "model": (*FOUNDATION, "bindings"),
    "log": FOUNDATION,
    "report": (*FOUNDATION, "log"),
    "options": (*FOUNDATION, "bindings", "log", "model"),
    "cli": (*FOUNDATION, "options"),
    "config": (*FOUNDATION, "bindings", "model", "options", "cli"),
    "host": (*FOUNDATION, "bindings", "model", "config"),
    "usernet": (*FOUNDATION, "bindings", "model", "config", "host"),
    "sandbox": (*FOUNDATION, "bindings", "model", "report"),
    "plan": (*FOUNDATION, "bindings", "model", "config", "host", "usernet", "sandbox"),
    "supervisor": (
        *(*FOUNDATION, "bindings", "model", "log", "report", "options"),
        *("plan", "sandbox", "usernet"),
    ),
    "vmm": (*FOUNDATION, "bindings", "model", "report", "plan", "host", "sandbox"),
    "passt": (*FOUNDATION, "bindings", "report", "plan", "sandbox", "usernet"),
}
ABOVE_ALL = ("__main__", "check", "listing", "rehearsal")

MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 200
MAX_ATTRIBUTES = 12

SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = [*SOURCES, *sorted((TOP / "dist-scripts").glob("*.py")), TOP / "noxfile.py"]
EVERYWHERE += sorted((TOP / "tests").rglob("*.py"))


def room_of(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    """Of this package, those that only the type checker imports among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "krunclient":
            # __version__ is everybody's.
            names = [f"krunclient.{a.name}" for a in node.names if not a.name.startswith("__")]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.startswith("krunclient."):
                yield name.split(".")[1]


def test_no_room_imports_upwards() -> None:
    for room, allowed in MAY_IMPORT.items():
        above = list(MAY_IMPORT)[: list(MAY_IMPORT).index(room)]
        assert set(allowed) <= set(above), f"{room} is to import a room that is not above it"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_room_imports_only_what_it_may(source: Path) -> None:
    room = room_of(source)
    if room in (*ABOVE_ALL, "zipapp", "__init__"):
        return
    found = set(imported_rooms(ast.parse(source.read_text()))) - {room}
    assert found <= set(MAY_IMPORT[room])


def test_no_room_imports_what_is_above_all() -> None:
    for source in SOURCES:
        if room_of(source) not in (*ABOVE_ALL, "zipapp"):
            assert not set(imported_rooms(ast.parse(source.read_text()))) & set(ABOVE_ALL), source


def is_test_module(name: str) -> bool:
    return any(part.startswith("test_") or part == "conftest" for part in name.split("."))


def test_no_test_imports_from_another_test() -> None:
    for source in (TOP / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                if str(node.module).startswith("tests."):
                    assert not any(map(is_test_module, names)), source


def test_nothing_changes_the_module_search_path_on_import() -> None:
    for source in EVERYWHERE:
        if "zipapp" in source.parts:  # its whole job
            continue
        for node in ast.parse(source.read_text()).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert "sys.path" not in ast.unparse(node) or "==" in ast.unparse(node), source


def length(node: ast.FunctionDef | ast.ClassDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def attributes(node: ast.ClassDef) -> set[str]:
    """Those that are declared in the class, and those that its methods set."""
    declared = {
        one.target.id
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    return declared | {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute)
        and isinstance(one.ctx, ast.Store)
        and isinstance(one.value, ast.Name)
        and one.value.id == "self"
    }


@pytest.mark.parametrize("source", EVERYWHERE, ids=lambda path: str(path.relative_to(TOP)))
def test_no_function_and_no_class_is_too_large_to_hold_in_the_head(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert length(node) <= MAX_FUNCTION_LINES, node.name
        if isinstance(node, ast.ClassDef):
            # One that only declares C functions is a table.
            is_table = any("Library" in ast.unparse(base) for base in node.bases)
            assert length(node) <= MAX_CLASS_LINES or is_table, node.name
            assert len(attributes(node)) <= MAX_ATTRIBUTES, (node.name, attributes(node))
