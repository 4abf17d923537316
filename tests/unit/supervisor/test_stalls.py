"""A connection is known by its two ends, as the kernel's tables of sockets write them."""

from __future__ import annotations

import socket

import pytest

from krunclient.bindings.libc import AF_INET
from krunclient.host.facts import find_architecture
from krunclient.supervisor.stalls import StalledSends, connections
from tests.framework.stages import LIBC


@pytest.mark.parametrize(
    ("family", "address"),
    [(AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")],
)
def test_a_connection_is_found_for_as_long_as_there_is_one(family: int, address: str) -> None:
    sends = StalledSends(LIBC, find_architecture(), 0, -1)
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((address, 0))
        listener.listen()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            ends = sends._connection(accepted.fileno())
            assert ends in connections()
        assert ends in connections()  # closed here alone: what was sent may still be under way
        client.close()
    assert ends not in connections()
