"""The network policy, as the supervisor enforces it on the VMM's sockets.

Guest sockets are made in the VMM, so bind(2), connect(2) and listen(2) of the VMM are what the
guest may do. The seccomp filter stops each such call and tells the supervisor, which reads the
address once, asks the policy, and makes the call itself, on a socket of its own that then takes
the place of the VMM's: the VMM can't change an address between the check and the use, nor give
the socket options that lead it elsewhere. No byte of a connection passes here.
"""

from __future__ import annotations

import errno
import os

from krunclient.bindings.libc import (
    AF_INET,
    AF_INET6,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    sockaddr_of,
)
from krunclient.supervisor.notifications import Notifications, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.model import Policy
    from krunclient.supervisor.mappedport import MappedPort
    from krunclient.supervisor.notifications import Call


class SocketSupervisor:
    """Answers the calls of one VMM."""

    def __init__(
        self,
        libc: Libc,
        architecture: Architecture,
        policy: Policy,
        port: MappedPort,
        notifications: Notifications,
    ) -> None:
        self._libc = libc
        self._policy = policy
        self._port = port
        self._notifications = notifications
        self._calls: dict[int | None, Callable[[Call], int | None]] = {
            architecture.syscalls["bind"]: self._bind,
            architecture.syscalls["connect"]: self._connect,
            architecture.syscalls["listen"]: self._listen,
        }

    @property
    def listener(self) -> int:
        """Readable when there is a call to be answered."""
        return self._notifications.listener

    def answer(self) -> None:
        self._notifications.answer(self._calls)

    def _bind(self, call: Call) -> None:
        if not self._policy.may_listen(call.address()):
            raise RefusedError(errno.EACCES)
        family = self._family(call)
        if family == AF_INET and self._policy.listen.family == AF_INET6:
            raise RefusedError(errno.EAFNOSUPPORT)
        own = self._port.bound_socket(family)
        try:
            call.replace(own)
        finally:
            os.close(own)

    def _listen(self, call: Call) -> None:
        """listen(2) without a bind would take a port of the kernel's choice."""
        socket = call.socket()
        try:
            if not self._port.is_local_end_of(socket):
                raise RefusedError(errno.EACCES)
            self._port.listen(socket, call.argument(1))
        finally:
            os.close(socket)

    def _connect(self, call: Call) -> None:
        wanted = call.address()
        if wanted is None or not self._policy.may_connect(wanted):
            raise RefusedError(errno.EACCES)
        family = self._family(call)
        if family == AF_INET and wanted.family == AF_INET6:
            raise RefusedError(errno.EAFNOSUPPORT)
        # The VMM waits for the end of the connect by poll; this process must not wait.
        own = self._libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
        try:
            sockaddr = wanted.sockaddr(family)
            try:
                self._libc.connect(own, sockaddr, len(sockaddr))
            except BlockingIOError:
                call.replace(own)
                raise
            call.replace(own)
        finally:
            os.close(own)

    def _family(self, call: Call) -> int:
        """Raises RefusedError if the call is about anything but an IP socket."""
        socket = call.socket()
        try:
            family = int.from_bytes(sockaddr_of(self._libc.getsockname, socket)[:2], "little")
        finally:
            os.close(socket)
        if family not in (AF_INET, AF_INET6):
            raise RefusedError(errno.EACCES)
        return family
