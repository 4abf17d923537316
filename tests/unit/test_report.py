"""What the child tells comes back as it was; what a hostile one tells harms nobody."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient import errors, report
from krunclient.errors import LaunchError, VmError
from krunclient.report import MAX_BYTES, Report


def read(data: bytes, size: int = MAX_BYTES) -> Report:
    """A report that came in pieces of this size."""
    found = Report()
    for start in range(0, len(data), size):
        found.feed(data[start : start + size])
    return found


def sent(error: LaunchError) -> bytes:
    reader, writer = os.pipe()
    report.send_error(writer, error)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return file.read()


@pytest.mark.parametrize("kind", errors.by_name().values())
def test_an_error_of_any_kind_comes_back_as_it_was(kind: type[LaunchError]) -> None:
    error = kind("what", os.fsdecode(b"\xff\n"), "why", "remedy")
    received = read(sent(error)).error("/root")
    assert type(received) is kind
    assert received.args == error.args


def test_an_error_of_a_kind_that_comes_later_comes_back_as_well() -> None:
    class NewError(VmError):
        status = 70

    try:
        test_an_error_of_any_kind_comes_back_as_it_was(NewError)
    finally:
        del NewError


@given(st.integers(1, 20))
def test_a_listener_is_told_once_and_an_error_after_it_is_kept(size: int) -> None:
    found = read(b"listener 9\n" + sent(VmError("a", "b", "c", "d")), size)
    assert found.take_listener() == 9
    assert found.take_listener() is None
    error = found.error("/root")
    assert error is not None
    assert error.args == ("a", "b", "c", "d")


@pytest.mark.parametrize("data", [b"listener 9", b"listener x\n", b"listener -1\n", b"\n", b""])
def test_a_line_that_names_no_listener_is_none(data: bytes) -> None:
    assert read(data).take_listener() is None


def test_no_report_is_no_error() -> None:
    assert read(b"").error("/root") is None


@given(st.binary(min_size=1))
def test_no_report_breaks_the_reader(data: bytes) -> None:
    found = read(data)
    found.take_listener()
    error = found.error("/root")
    assert error is None or error.status in {kind.status for kind in errors.by_name().values()}


def test_a_report_without_end_takes_no_more_than_its_bound() -> None:
    found = Report()
    for _ in range(100):
        found.feed(b"x" * 65536)
    assert found.is_full
    assert len(found._data) == MAX_BYTES
