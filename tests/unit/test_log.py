"""A message is one line, of the wanted level, on the descriptor that was given."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from krunclient.errors import UsageError
from krunclient.log import Log, one_line, write_all


def written(level: str, text: str) -> bytes:
    reader, writer = os.pipe()
    Log(level, writer).info(text)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return file.read()


def test_levels_below_the_wanted_one_are_not_written() -> None:
    assert written("info", "text") == b"krunclient: info: text\n"
    assert written("warning", "text") == b""


def test_an_error_is_one_line_of_four_parts() -> None:
    reader, writer = os.pipe()
    Log("error", writer).failure(UsageError("it failed", "a\nb", "why", "do that"))
    assert os.read(reader, 200) == b"krunclient: error: it failed: a\\nb: why; do that\n"


@given(st.text(st.characters(codec="utf-8")))
def test_no_text_breaks_out_of_its_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert "\x1b" not in line


def test_what_is_written_is_always_utf8() -> None:
    assert written("info", os.fsdecode(b"/\xff")) == b"krunclient: info: /\\udcff\n"


def test_a_reader_that_is_gone_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert not write_all(writer, b"text")
