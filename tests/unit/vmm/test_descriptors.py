"""What the VMM child has for input and output, and what it has not."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient.errors import PermissionDeniedError, VmError
from krunclient.vmm import descriptors
from tests.framework.stages import LIBC


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], int]:
    """Which descriptors are inherited, of those from 3 on, and how many there may be."""
    inherited = st.lists(st.integers(3, 13), min_size=3, max_size=6, unique=True)
    return draw(inherited), draw(st.sampled_from([14, 16, 20, 1000]))


@given(tables())
def test_the_child_keeps_what_is_its_own_in_its_places_and_nothing_else(
    table: tuple[list[int], int],
) -> None:
    inherited, limit = table
    there = {number: f"file {number}" for number in range(14)}
    wanted = [there[number] for number in (*inherited[:3], 2, *inherited[3:])]

    def dup2(source: int, target: int, *, inheritable: bool) -> int:
        assert not inheritable
        if target >= limit:
            raise OSError(24, "Too many open files")
        assert source != target
        there[target] = there[source]
        return target

    def close_range(first: int, last: int, _flags: int) -> None:
        for number in [one for one in there if first <= one <= last]:
            del there[number]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "dup2", dup2)
        patched.setitem(LIBC.__dict__, "close_range", close_range)
        try:
            log, report, go, *others = inherited
            descriptors.keep(LIBC, log, report, go, tuple(others))
        except VmError:
            assert limit < 1000
            assert all(there[number] == f"file {number}" for number in inherited)
            return
    own = {descriptors.LOG + position: file for position, file in enumerate(wanted)}
    assert there == {0: "file 0", 1: "file 1", 2: "file 2", **own}


def test_a_terminal_of_another_user_is_permission_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "isatty", lambda number: number == 2)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionDeniedError, match=r"standard error: .* a terminal of another"):
        descriptors.leave_the_terminal()
