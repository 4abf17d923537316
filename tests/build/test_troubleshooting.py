"""Each error that krunclient can tell stands in docs/TROUBLESHOOTING.md, with its reasons."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator

import pytest

from krunclient import errors
from tests.framework.paths import TOP

PACKAGE = TOP / "krunclient"
TEXT = (TOP / "docs/TROUBLESHOOTING.md").read_text()
SECTIONS = {
    section.partition("\n")[0]: " ".join(section.replace("`", "").split())
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
}
CALLS = {*errors.by_name(), "failed_call", "fail", "_fail", "ExtractionError"}
FEWEST = 100  # so that a change of style does not leave nothing to look for
# What comes from elsewhere: an errno's text, what a library or passt said.
ELSEWHERE = 3


def assignments(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """What names stand for."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    found.setdefault(name.id, []).append(value)
    return found


def texts(node: ast.expr, known: dict[str, list[ast.expr]]) -> Iterator[list[str]]:
    """The constant parts of each text that an expression can be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield [node.value]
    elif isinstance(node, ast.JoinedStr):
        yield [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body, known)
        yield from texts(node.orelse, known)
    elif isinstance(node, ast.Name):
        for value in known.get(node.id, []):
            yield from texts(value, {})


def calls(tree: ast.AST, names: Collection[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in names:
            yield node


def called(node: ast.Call) -> str:
    """The name of the function, or of the method."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def told() -> Iterator[tuple[str, list[str], list[str]]]:
    """Where, and the parts of WHAT and of WHY."""
    for source in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(source.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        # Those that are given the reason: each of their calls has one.
        helpers: dict[str, tuple[int, list[list[str]]]] = {}
        for function in functions:
            known = {**assignments(tree.body), **assignments(ast.walk(function))}
            parameters = [argument.arg for argument in function.args.args]
            for node in calls(function, CALLS):
                if len(node.args) < ELSEWHERE:
                    continue
                what, _, why, *_ = node.args
                whats = list(texts(what, known))
                if isinstance(why, ast.Name) and why.id in parameters:
                    helpers[function.name] = (parameters.index(why.id), whats)
                reasons = list(texts(why, known)) or [[]]
                for parts in whats:
                    yield from ((f"{source.name}:{node.lineno}", parts, one) for one in reasons)
        for function in functions:
            known = assignments(ast.walk(function))
            for node in calls(function, helpers):
                position, whats = helpers[called(node)]
                for parts in whats:
                    for reason in texts(node.args[position], known):
                        yield f"{source.name}:{node.lineno}", parts, reason


FOUND = list(told())


def test_there_are_errors_to_look_for() -> None:
    assert len(FOUND) >= FEWEST


@pytest.mark.parametrize(
    ("parts", "reason"),
    [(parts, reason) for _, parts, reason in FOUND],
    ids=[f"{place} {''.join(parts)}: {''.join(reason)}"[:90] for place, parts, reason in FOUND],
)
def test_each_error_has_a_section_and_each_reason_a_line_of_it(
    parts: list[str], reason: list[str]
) -> None:
    what = "".join(parts)
    section = SECTIONS.get(what) or SECTIONS[f"OPTION{what}"]
    for part in reason:
        for words in re.split(r"[:;()]", part):
            assert " ".join(words.split()) in section


def test_no_section_is_about_an_error_that_is_not_there() -> None:
    there = {"".join(parts) for _, parts, _ in FOUND}
    for what in SECTIONS:
        assert what in there or what.removeprefix("OPTION") in there, what
