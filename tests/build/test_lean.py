"""Source that was made lean is the same program, on the same lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lean import lean
from tests.framework.paths import TOP

SOURCES = sorted((TOP / "krunclient").rglob("*.py"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


class Stripped(ast.NodeTransformer):
    """The same on the tree, where it is easy and loses the text."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> ast.If:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
        self.generic_visit(node)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        return super().generic_visit(node)


def lines(tree: ast.AST) -> list[tuple[int, str]]:
    """Where the statements stand that are no part of what is left out."""
    kept = (ast.FunctionDef, ast.ClassDef, ast.Return, ast.Assign, ast.Raise)
    return [(one.lineno, type(one).__name__) for one in ast.walk(tree) if isinstance(one, kept)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_what_is_left_is_the_same_program_on_the_same_lines(source: Path) -> None:
    left = ast.parse(lean(source.read_bytes()))
    expected = Stripped().visit(ast.parse(source.read_bytes()))
    assert ast.unparse(left) == ast.unparse(expected)
    assert lines(left) == lines(expected)


def test_each_kind_of_what_is_left_out_is() -> None:
    source = '''
from __future__ import annotations
TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing
    A = typing.Any
else:
    B = 1
class ä:
    """One."""
    field: int = 1
    def method(self, é: tuple[
        int, str
    ] = "ü", *more: A, b: A) -> tuple[
        int, str
    ]:
        """Two
        lines."""
        return é
class Documented:
    """Only."""
'''
    assert lean(source.encode()).decode().split() == [
        "TYPE_CHECKING",
        "=",
        "False",
        "if",
        "TYPE_CHECKING:",
        "pass",
        "else:",
        "B",
        "=",
        "1",
        "class",
        "ä:",
        "field:",
        "int",
        "=",
        "1",
        "def",
        "method(self,",
        "é",
        "=",
        '"ü",',
        "*more,",
        "b)",
        "\\",
        "\\",
        ":",
        "return",
        "é",
        "class",
        "Documented:",
        "pass",
    ]
