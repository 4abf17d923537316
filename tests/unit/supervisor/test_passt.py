"""The port behind passt where the supervisor can't open it at once."""

from __future__ import annotations

import errno
import os
import socket
from typing import cast

import pytest

from krunclient.bindings.arch import X86_64
from krunclient.model import Endpoint
from krunclient.supervisor import passt
from krunclient.supervisor.loop import Loop
from krunclient.supervisor.mappedport import MappedPort
from krunclient.supervisor.notifications import Call, RefusedError
from krunclient.usernet import LISTENS, NEWS, UserNetwork
from tests.framework.stages import LIBC, settings


class BusyAtFirst:
    """A mapped port that listens at the second try."""

    is_listening = False
    tries = 0

    def bound_socket(self, family: int) -> int:
        return socket.socket(family).detach()

    def listen(self, _socket: int, _backlog: int) -> None:
        self.tries += 1
        if self.tries == 1:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        self.is_listening = True


class News:
    """A connect(2) by which the guest's program tells that the guest listens."""

    def address(self) -> Endpoint:
        return Endpoint(packed=NEWS, port=LISTENS)


def test_a_port_that_can_be_opened_only_later_is_told_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passt, "RETRY_SECONDS", 0.01)
    port, loop = BusyAtFirst(), Loop()
    heard = []

    def called() -> None:
        heard.append(port.is_listening)
        loop.stop()

    sockets = passt.PasstSockets(
        *(LIBC, X86_64, settings().policy, cast("UserNetwork", None)),
        *(cast("MappedPort", port), loop, called),
    )
    with pytest.raises(RefusedError):
        sockets.calls[X86_64.syscalls["connect"]](cast("Call", News()))
    assert not port.is_listening
    loop.run()
    assert heard == [True]
