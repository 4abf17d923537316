"""Clients that a server has beside the one that counts: dead, slow and silent ones."""

from __future__ import annotations

import http.client
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")
SMALL_BUFFER = 1 << 16
PAUSE = 0.1
PATIENCE = 60  # seconds
SMALL_COST = 1.5
MAX_FAILURES = 5  # in a row: the rest would fail as well, at its time-out each


def ask(port: int, path: str) -> socket.socket:
    """A client that has asked for something, and has taken nothing of it yet."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", port))
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    connection.sendall(request.encode())
    return connection


@contextmanager
def reading(port: int, path: str, bytes_per_second: int) -> Iterator[None]:
    """A client that reads so fast, for as long as there is something."""
    ended = threading.Event()

    def read() -> None:
        with ask(port, path) as connection:
            while not ended.wait(PAUSE) and connection.recv(round(bytes_per_second * PAUSE)):
                pass

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def silent(port: int, count: int) -> Iterator[None]:
    """Clients that connect and say nothing."""
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield


@dataclass(frozen=True)
class Latencies:
    """Of requests one after the other, in seconds, and what those said that failed."""

    seconds: list[float]
    errors: list[str]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def percentile_99(self) -> float:
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[98]


def cost_others(
    port: int,
    clients: Callable[[], AbstractContextManager[object]],
    *,
    again: bool = False,
    attempts: int = 3,
) -> float:
    """How many times as long the median request takes beside these clients: the least of some
    attempts, since what else the host does comes and goes. None may fail; `again` as in `requests`.
    """
    ratios = []
    for _ in range(attempts):
        alone = requests(port, 50, 30, again=again)
        with clients():
            beside = requests(port, 100, 30, again=again)
        assert not alone.errors, f"alone: {alone.errors}"
        assert not beside.errors, f"beside others: {beside.errors}"
        ratios.append(beside.median / alone.median)
        if ratios[-1] < SMALL_COST:
            break
    return min(ratios)


def once_more(ask_once: Callable[[], Answer]) -> Answer:
    """libkrun's own network closes a connection now and then before the guest has read a request
    from it, whoever launched it: then it is asked again, as a client should.
    """
    try:
        return ask_once()
    except http.client.RemoteDisconnected:
        return ask_once()


def side_by_side(count: int, at_once: int, ask_once: Callable[[], object]) -> int:
    """Ask so many times, so many at once. Returns how many failed."""

    def asks(_number: int) -> bool:
        try:
            ask_once()
        except (OSError, http.client.HTTPException):
            return False
        return True

    with ThreadPoolExecutor(at_once) as pool:
        return sum(not succeeded for succeeded in pool.map(asks, range(count)))


def ask_and_reset(port: int, path: str) -> None:
    """A client that has had some of its answer, and then resets the connection, socket(7)."""
    with ask(port, path) as connection:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def requests(port: int, count: int, timeout: float, *, again: bool = False) -> Latencies:
    """Ask for / so many times, on a connection each. One that fails counts with all its time.

    With `again`, as `once_more` says.
    """
    seconds: list[float] = []
    errors: list[str] = []
    in_a_row = 0
    while len(seconds) < count and in_a_row < MAX_FAILURES:
        began = time.monotonic()
        try:
            if again:
                once_more(lambda: _request(port, timeout))
            else:
                _request(port, timeout)
            in_a_row = 0
        except (OSError, http.client.HTTPException) as error:
            errors.append(repr(error))
            in_a_row += 1
        seconds.append(time.monotonic() - began)
    return Latencies(seconds, errors)


def _request(port: int, timeout: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    finally:
        connection.close()
