"""Python source without what only readers and tools need: a launch pays for each byte of the rest.

What is left keeps its lines, so that a traceback names those of the source.
"""

from __future__ import annotations

import ast


def lean(source: bytes) -> bytes:
    """Without docstrings, the import of __future__, what only type checkers see, and annotations
    but for the fields of classes. These must be compiled as that import has them.
    """
    cuts = _Cuts(source)
    cuts.visit(ast.parse(source))
    return cuts.made()


class _Cuts(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self._source = source
        self._lines = [0]  # where each begins
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._cuts: list[tuple[int, int, bytes]] = []

    def made(self) -> bytes:
        parts, at = [], 0
        for start, end, instead in sorted(self._cuts):
            parts += [self._source[at:start], instead]
            at = end
        return b"".join([*parts, self._source[at:]])

    def visit_Module(self, node: ast.Module) -> None:
        self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.returns is not None:
            arrow = self._source.rindex(b"->", 0, self._start(node.returns))
            self._cut(arrow, self._end(node.returns), newline=b"\\\n")
            node.returns = None
        self._body(node)

    def visit_arg(self, node: ast.arg) -> None:
        if node.annotation is not None:
            self._cut(self._start(node) + len(node.arg.encode()), self._end(node.annotation))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module == "__future__":
            self._cut(self._start(node), self._end(node))

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._cut(self._start(node.body[0]), self._end(node.body[-1]), b"pass")
            node.body = []
        self.generic_visit(node)

    def _body(self, node: ast.Module | ast.ClassDef | ast.FunctionDef) -> None:
        if ast.get_docstring(node, clean=False) is not None:
            docstring, *rest = node.body
            self._cut(self._start(docstring), self._end(docstring), b"" if rest else b"pass")
            node.body = rest
        self.generic_visit(node)

    def _cut(self, start: int, end: int, instead: bytes = b"", newline: bytes = b"\n") -> None:
        lines = self._source.count(b"\n", start, end)
        self._cuts.append((start, end, instead + newline * lines))

    def _start(self, node: ast.stmt | ast.expr | ast.arg) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.stmt | ast.expr) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.end_lineno - 1] + node.end_col_offset
