"""The loop calls each handler when its descriptor or its time is due, and no other."""

from __future__ import annotations

import itertools
import os
import socket
import time
from functools import partial

import pytest

from krunclient.supervisor.loop import READABLE, WRITABLE, Loop


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_a_descriptor_is_handled_when_it_can_be_read(loop: Loop) -> None:
    reader, writer = os.pipe()
    seen: list[bytes] = []

    def ready() -> None:
        seen.append(os.read(reader, 10))
        loop.stop()

    def write() -> None:
        os.write(writer, b"x")

    loop.watch(reader, READABLE, ready)
    loop.start_timer("write", 0.01, write)
    loop.run()
    assert seen == [b"x"]


def test_a_connect_that_is_under_way_is_handled_when_it_is_through(loop: Loop) -> None:
    """What a health check needs: POLLOUT, then POLLIN, on one descriptor."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(server.getsockname())
        seen = []

        def connected() -> None:
            seen.append("connected")
            connection, _ = server.accept()
            connection.sendall(b"answer")
            connection.close()
            loop.watch(client.fileno(), READABLE, answered)

        def answered() -> None:
            seen.append(client.recv(10).decode())
            loop.stop()

        loop.watch(client.fileno(), WRITABLE, connected)
        loop.run()
    assert seen == ["connected", "answer"]


def test_a_hang_up_is_told_once_and_the_descriptor_left(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    gone = []
    loop.watch(writer, READABLE, loop.stop, lambda: gone.append("gone"))
    loop.start_timer("end", 0.05, loop.stop)
    loop.run()
    assert gone == ["gone"]


def test_timers_are_called_once_and_in_their_order(loop: Loop) -> None:
    seen: list[str] = []
    for name, seconds in (("c", 0.03), ("a", 0.01), ("b", 0.02)):
        loop.start_timer(name, seconds, partial(seen.append, name))
    loop.start_timer("end", 0.05, loop.stop)
    loop.run()
    assert seen == ["a", "b", "c"]


def test_a_timer_that_starts_itself_again_polls(loop: Loop) -> None:
    times = []

    def look() -> None:
        times.append(time.monotonic())
        if len(times) == 5:
            loop.stop()
        loop.start_timer("look", 0.01, look)

    look()
    loop.run()
    assert len(times) == 5
    assert all(after - before >= 0.01 for before, after in itertools.pairwise(times))


def test_a_timer_that_is_cancelled_or_replaced_is_not_called(loop: Loop) -> None:
    seen: list[str] = []
    loop.start_timer("cancelled", 0.01, partial(seen.append, "cancelled"))
    loop.start_timer("replaced", 0.01, partial(seen.append, "first"))
    loop.start_timer("replaced", 0.02, partial(seen.append, "second"))
    loop.start_timer("end", 0.04, loop.stop)
    loop.cancel_timer("cancelled")
    loop.cancel_timer("never started")
    loop.run()
    assert seen == ["second"]


def test_a_timer_can_cancel_another_that_is_due_with_it(loop: Loop) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.cancel_timer("second")
        loop.start_timer("end", 0.02, loop.stop)

    loop.start_timer("first", 0, first)
    loop.start_timer("second", 0, partial(seen.append, "second"))
    loop.run()
    assert seen == ["first"]


def test_a_handler_can_leave_another_that_is_ready_with_it(loop: Loop) -> None:
    pairs = [os.pipe() for _ in range(2)]
    seen = []

    def ready(number: int) -> None:
        seen.append(number)
        for reader, _ in pairs:
            loop.unwatch(reader)

    for number, (reader, writer) in enumerate(pairs):
        os.write(writer, b"x")
        loop.watch(reader, READABLE, partial(ready, number))
    loop.start_timer("end", 0.02, loop.stop)
    loop.run()
    assert len(seen) == 1


def test_nothing_is_handled_after_a_stop(loop: Loop) -> None:
    pairs = [os.pipe() for _ in range(2)]
    seen = []

    def ready(number: int) -> None:
        seen.append(number)
        loop.stop()

    for number, (reader, writer) in enumerate(pairs):
        os.write(writer, b"x")
        loop.watch(reader, READABLE, partial(ready, number))
    loop.start_timer("due", 0, lambda: seen.append(2))
    loop.run()
    assert len(seen) == 1


def test_waiting_takes_no_processor_time(loop: Loop) -> None:
    reader, _ = os.pipe()
    loop.watch(reader, READABLE, loop.stop)
    loop.start_timer("end", 0.5, loop.stop)
    before = time.process_time()
    loop.run()
    assert time.process_time() - before < 0.05
