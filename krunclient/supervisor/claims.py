"""Claims LOCAL_PORT for one VM, by bound sockets.

Descriptors hold the claim, so that it ends with the process, however that happens.
"""

from __future__ import annotations

import errno
import os

from krunclient.bindings.libc import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    set_socket_option,
)
from krunclient.errors import BusyError, HostError, LaunchError, PermissionDeniedError, reason
from krunclient.model import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc

UNUSED_LOOPBACK = bytes((127, 255, 255, 254))


class PortClaim:
    """LOCAL_PORT, on all of the host's addresses.

    Two sockets are bound to it, one for IPv4 and one for IPv6, and never listen. They set neither
    SO_REUSEADDR nor SO_REUSEPORT: so no other program can bind the port, on any address. By a name
    in the abstract UNIX namespace, which belongs to the network namespace as ports do, a second
    krunclient finds the first.
    """

    def __init__(self, libc: Libc, name: int, bound: tuple[int, ...]) -> None:
        self._libc = libc
        self._name = name
        self._bound = bound

    def release(self) -> None:
        for descriptor in (self._name, *self._bound):
            os.close(descriptor)

    def share_while(self, bind_or_listen: Callable[[], object]) -> None:
        """Make a call on another socket, which has SO_REUSEADDR, while the claim's sockets share
        the port. Raises OSError.

        Not by SO_REUSEPORT, which the kernel shares with one user alone: it would remember that
        (tb->fastreuseport), and let that user's other programs in from then on.
        """
        self._share(SO_REUSEADDR, 1)
        try:
            bind_or_listen()
        finally:
            self._share(SO_REUSEADDR, 0)

    def share_with_libkrun(self) -> None:
        """Share the port with sockets that set SO_REUSEADDR or SO_REUSEPORT; libkrun's version
        decides which. Raises OSError.
        """
        for option in (SO_REUSEADDR, SO_REUSEPORT):
            self._share(option, 1)

    def _share(self, option: int, on: int) -> None:
        for descriptor in self._bound:
            set_socket_option(self._libc, descriptor, SOL_SOCKET, option, on)


def claim_port(libc: Libc, listen: Endpoint) -> PortClaim:
    """Claim a port against all others, for as long as this process lives.

    Raises BusyError, PermissionDeniedError, or HostError for an address that is not the host's.
    """
    try:
        return _claim_port(libc, listen)
    except OSError as error:
        raise _port_error(listen, error) from None


def _claim_port(libc: Libc, listen: Endpoint) -> PortClaim:
    name = b"\0krunclient-port-%d" % listen.port
    sockaddr = AF_UNIX.to_bytes(2, "little") + name
    # Nobody can send anything to a stream socket that does not listen.
    mark = libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    libc.bind(mark, sockaddr, len(sockaddr))
    # Older kernels (6.1 does, 6.12 does not) keep a flag for each port: if every socket so far was
    # bound with SO_REUSEADDR, they let in another that has it, and look at no conflict
    # (tb->fastreuse in net/ipv4/inet_connection_sock.c). A bind without that option clears the
    # flag; on an address that no connection of an earlier run has, it can't fail for TIME_WAIT.
    unused = Endpoint(packed=UNUSED_LOOPBACK, port=listen.port)
    first = _bound(libc, AF_INET, unused, v6_only=False, reuse=0)
    set_socket_option(libc, first, SOL_SOCKET, SO_REUSEADDR, 1)
    bound = []
    for family, size in ((AF_INET, 4), (AF_INET6, 16)):
        everywhere = Endpoint(packed=bytes(size), port=listen.port)
        try:
            bound.append(_bound(libc, family, everywhere, v6_only=True))
        except OSError as error:
            # A host without IPv6 has no such sockets, or no such addresses.
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    # Whether the address is the host's.
    os.close(_bound(libc, listen.family, listen, v6_only=False))
    for descriptor in bound:
        set_socket_option(libc, descriptor, SOL_SOCKET, SO_REUSEADDR, 0)
    os.close(first)
    return PortClaim(libc, mark, tuple(bound))


def _bound(libc: Libc, family: int, endpoint: Endpoint, *, v6_only: bool, reuse: int = 1) -> int:
    """A socket that is bound and does not listen.

    SO_REUSEADDR is set because connections of an earlier run may still be in TIME_WAIT: Linux
    then allows the bind, and still refuses it beside a listener. SO_REUSEPORT is not, because a
    listener that has it would share the port with us.
    """
    descriptor = libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)
    try:
        set_socket_option(libc, descriptor, SOL_SOCKET, SO_REUSEADDR, reuse)
        if family == AF_INET6:
            set_socket_option(libc, descriptor, IPPROTO_IPV6, IPV6_V6ONLY, int(v6_only))
        sockaddr = endpoint.sockaddr(family)
        libc.bind(descriptor, sockaddr, len(sockaddr))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _port_error(listen: Endpoint, error: OSError) -> LaunchError | OSError:
    what, thing, why = "LOCAL_PORT can't be used", listen.text(), reason(error)
    if error.errno == errno.EADDRINUSE:
        return BusyError(what, thing, why, "try again or use another")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(what, thing, why, "use a port from 1024 on")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):  # the latter for link-local ones
        return HostError(what, thing, why, "give an address of this host by --bind")
    return error
