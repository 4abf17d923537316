"""BIND:LOCAL_PORT: the one socket that listens on the host for the guest, in either network."""

from __future__ import annotations

import errno
import os

from krunclient import model
from krunclient.bindings.libc import (
    AF_INET6,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_KEEPALIVE,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_USER_TIMEOUT,
    set_socket_option,
    sockaddr_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.model import Policy
    from krunclient.supervisor.claims import PortClaim

# A peer that is gone is found after a minute of silence, and some unanswered probes.
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS = 60, 10


class MappedPort:
    """`is_listening` turns true with the guest's first listener, `is_lost` if another program has
    taken the port in the moment in which that was made.
    """

    def __init__(self, libc: Libc, policy: Policy, claim: PortClaim) -> None:
        self._libc = libc
        self._policy = policy
        self._claim = claim
        self.is_listening = False
        self.is_lost = False

    def bound_socket(self, family: int) -> int:
        """A socket that is bound and does not listen yet. Raises OSError."""
        own = self._libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
        try:
            # For the claim, and for what an earlier run left in TIME_WAIT.
            set_socket_option(self._libc, own, SOL_SOCKET, SO_REUSEADDR, 1)
            self._bound_clients(own)
            if family == AF_INET6:
                set_socket_option(self._libc, own, IPPROTO_IPV6, IPV6_V6ONLY, 0)
            sockaddr = self._policy.listen.sockaddr(family)
            self._try(lambda: self._libc.bind(own, sockaddr, len(sockaddr)))
        except BaseException:
            os.close(own)
            raise
        return own

    def listen(self, socket: int, backlog: int) -> None:
        """Raises OSError."""
        self._try(lambda: self._libc.listen(socket, backlog))
        self.is_listening = True

    def is_local_end_of(self, socket: int) -> bool:
        """Whether a socket is bound to the mapped port. Raises OSError."""
        own = sockaddr_of(self._libc.getsockname, socket)
        return model.from_sockaddr(own) == self._policy.listen

    def _try(self, bind_or_listen: Callable[[], object]) -> None:
        try:
            self._claim.share_while(bind_or_listen)
        except OSError as error:
            self.is_lost |= error.errno == errno.EADDRINUSE and not self.is_listening
            raise

    def _bound_clients(self, listening: int) -> None:
        """Let the kernel end the connection of a client that takes nothing, or is gone: sockets
        that are accepted from this one inherit it, tcp(7). libkrun sends to all of a VM's clients
        on one thread, where one that takes nothing holds up all others.
        """
        options = [
            (SOL_SOCKET, SO_KEEPALIVE, 1),
            (IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS),
            (IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS),
        ]
        limit = self._policy.client_timeout
        if limit is not None:
            options.append((IPPROTO_TCP, TCP_USER_TIMEOUT, max(1, round(limit * 1000))))
        for level, option, value in options:
            set_socket_option(self._libc, listening, level, option, value)
