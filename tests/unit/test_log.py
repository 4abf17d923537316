"""krunclient's messages: text for people, JSON for machines, one line each."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient.errors import UsageError
from krunclient.log import EVENTS, Event, Log, one_line, write_all
from tests.framework.paths import TOP

SOME = Event(name="some", level="info", when="in tests", fields=("field",))
LONG = Event(name="long", level="error", when="in tests", fields=("detail", "number"))
PLAIN = Event(name="plain", level="error", when="in tests")


def written(level: str, write: Callable[[Log], None], form: str = "text") -> bytes:
    reader, writer = os.pipe()
    write(Log(level, form, writer).with_context(root="/srv/app", port=30000))
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return file.read()


def test_levels_below_the_wanted_one_are_not_written() -> None:
    def write(log: Log) -> None:
        log.write(SOME, "text", field=None)

    assert written("info", write) == b"krunclient: info: text\n"
    assert written("warning", write) == b""


FAILURE = UsageError("it failed", "a\nb", "why", "do that")


def test_an_error_is_one_line_of_four_parts() -> None:
    line = written("error", lambda log: log.failure(FAILURE))
    assert line == b"krunclient: error: it failed: a\\nb: why; do that\n"


def test_an_error_as_json_is_one_object_with_its_parts() -> None:
    line = written("error", lambda log: log.failure(FAILURE), "json")
    assert line.count(b"\n") == 1
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found.pop("time"))
    assert found == {
        "level": "error",
        "event": "failed",
        "pid": os.getpid(),
        "root": "/srv/app",
        "port": 30000,
        "what": "it failed",
        "thing": "a\nb",
        "why": "why",
        "remedy": "do that",
        "status": 64,
        "message": "it failed: a\nb: why; do that",
    }


@given(st.text())
def test_no_text_breaks_out_of_its_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert "\x1b" not in line


@given(
    text=st.text(max_size=100),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=100),
)
def test_what_is_written_as_json_is_read_as_the_same_values(
    text: str, value: str | float | None
) -> None:
    line = written("info", lambda log: log.write(SOME, text, field=value), "json")
    found = json.loads(line)
    assert (found["message"], found["field"]) == (text, value)
    assert type(found["field"]) is type(value)


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_written_is_always_utf8(form: str) -> None:
    def write(log: Log) -> None:
        log.write(PLAIN, os.fsdecode(b"/\xff"))

    assert b"/\\udcff" in written("error", write, form)


def test_a_reader_that_is_gone_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert not write_all(writer, b"text")


def test_a_reader_that_does_not_read_holds_nothing_up_for_long() -> None:
    _, writer = os.pipe()
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    started = time.monotonic()
    Log("error", descriptor=writer).write(PLAIN, "text")
    assert time.monotonic() - started < 3


def test_a_terminal_that_nobody_reads_holds_nothing_up_for_long() -> None:
    ours, theirs = pty.openpty()
    started = time.monotonic()
    log = Log("error", descriptor=theirs)
    for _ in range(3000):
        log.write(PLAIN, "text" * 80)
    assert time.monotonic() - started < 4
    os.close(ours)


def test_a_reader_that_is_slow_holds_nothing_up_for_long() -> None:
    reader, writer = os.pipe()
    log = Log("error", descriptor=writer)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, bytes(4096))

    enough = threading.Event()

    def read_slowly() -> None:
        while not enough.wait(0.3):
            os.read(reader, 4096)

    thread = threading.Thread(target=read_slowly)
    thread.start()
    started = time.monotonic()
    for _ in range(30):
        log.write(PLAIN, "text" * 800)
    seconds = time.monotonic() - started
    enough.set()
    thread.join()
    assert seconds < 3


@pytest.mark.parametrize("text", ["x" * 5000, "\U0001f980" * 5000])
def test_a_message_that_is_too_long_is_cut_to_one_that_can_be_read(text: str) -> None:
    def write(log: Log) -> None:
        log.write(LONG, text, detail=text, number=3)

    line = written("error", write)
    assert line.decode().startswith(f"krunclient: error: {text[:500]}")
    assert len(line) <= 4096
    found = json.loads(written("error", write, "json"))
    assert found["message"] == text[:300]
    assert found["number"] == 3


def test_an_event_has_the_fields_of_its_row_and_no_other() -> None:
    log = Log("error")
    with pytest.raises(TypeError, match="the event some has the fields"):
        log.write(SOME, "text")
    with pytest.raises(TypeError, match="the event plain has the fields"):
        log.write(PLAIN, "text", field=1)


def test_the_document_has_a_line_for_each_event_with_its_fields() -> None:
    table = (TOP / "docs/OPERATIONS.md").read_text().partition("| event | when | fields |")[2]
    lines = table.partition("\n\n")[0].splitlines()[2:]
    documented = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cells[0] for cells in documented] == [f"`{event.name}`" for event in EVENTS]
    for cells, event in zip(documented, EVENTS, strict=True):
        assert cells[1].startswith(event.when)
        assert tuple(re.findall(r"`(\w+)`", cells[2])) == event.fields
