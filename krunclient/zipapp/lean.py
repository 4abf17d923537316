"""Source without what only readers and tools need: a launch pays for each byte of the rest."""

from __future__ import annotations

import ast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    Documented = TypeVar("Documented", ast.Module, ast.ClassDef, ast.FunctionDef)


def lean(source: str | bytes) -> ast.Module:
    """Parsed, without docstrings, the import of __future__, what only type checkers see, and
    annotations but for the fields of classes.
    """
    tree = ast.parse(source)
    _Lean().visit(tree)
    return ast.fix_missing_locations(tree)


class _Lean(ast.NodeTransformer):
    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self.generic_visit(_undocumented(node))

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self.generic_visit(_undocumented(node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(_undocumented(node))

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        return node


def _undocumented(node: Documented) -> Documented:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    return node
