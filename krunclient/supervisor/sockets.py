"""The network policy, as the supervisor enforces it on the VMM's sockets.

Guest sockets are made in the VMM, so bind(2), connect(2) and listen(2) of the VMM are what the
guest may do. The seccomp filter stops each such call and tells the supervisor, which reads the
address once, asks the policy, and makes the call itself, on a socket of its own that then takes
the place of the VMM's: the VMM can't change an address between the check and the use, nor give
the socket options that lead it elsewhere. No byte of a connection passes here.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import Structure, c_int32, c_int64, c_uint32, c_uint64

from krunclient import model
from krunclient.bindings.libc import (
    AF_INET,
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
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.model import Endpoint, Policy
    from krunclient.supervisor.claims import PortClaim

# <linux/seccomp.h>
NOTIF_RECV = 0xC0502100
NOTIF_SEND = 0xC0182101
NOTIF_ID_VALID = 0x40082102
NOTIF_ADDFD = 0x40182103
ADDFD_FLAG_SETFD = 1

# A peer that is gone is found after a minute of silence, and some unanswered probes.
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS = 60, 10

MAX_SOCKADDR_BYTES = 128  # struct sockaddr_storage


class Notification(Structure):
    """struct seccomp_notif, with its struct seccomp_data."""

    _fields_ = (
        ("id", c_uint64),
        ("pid", c_uint32),
        ("flags", c_uint32),
        ("number", c_int32),
        ("architecture", c_uint32),
        ("instruction_pointer", c_uint64),
        ("arguments", c_uint64 * 6),
    )


class Response(Structure):
    """struct seccomp_notif_resp."""

    _fields_ = (("id", c_uint64), ("value", c_int64), ("error", c_int32), ("flags", c_uint32))


class AddDescriptor(Structure):
    """struct seccomp_notif_addfd, Linux 5.9."""

    _fields_ = (
        ("id", c_uint64),
        ("flags", c_uint32),
        ("source", c_uint32),
        ("target", c_uint32),
        ("target_flags", c_uint32),
    )


class RefusedError(Exception):
    """The call gets this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class SocketSupervisor:
    """Answers the notifications of one VMM: `listener` is readable when there is one.

    `is_listening` turns true with the guest's own listener, `port_is_lost` if another program has
    taken the port in the moment in which that was made.
    """

    def __init__(
        self,
        libc: Libc,
        architecture: Architecture,
        policy: Policy,
        claim: PortClaim,
        process: int,
        pidfd: int,
        listener: int,
    ) -> None:
        """Take `listener`, the number of the VMM's own descriptor, out of it.

        Raises OSError if that is not allowed, or the VMM's memory can't be read.
        """
        self._libc = libc
        self._policy = policy
        self._claim = claim
        self._pidfd = pidfd
        self._memory = os.open(f"/proc/{process}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._calls = {
            architecture.syscalls["bind"]: self._bind,
            architecture.syscalls["connect"]: self._connect,
            architecture.syscalls["listen"]: self._listen,
        }
        self.listener = libc.pidfd_getfd(pidfd, listener, 0)
        self.is_listening = False
        self.port_is_lost = False

    def answer(self) -> None:
        """Take one notification and answer it. A call that was interrupted meanwhile is gone."""
        notification = Notification()
        try:
            self._libc.ioctl(self.listener, NOTIF_RECV, ctypes.byref(notification))
        except OSError:
            return
        try:
            self._calls[notification.number](notification)
            code = 0
        except RefusedError as refused:
            code = refused.code
        except OSError as error:
            code = error.errno or errno.EPERM
            self.port_is_lost |= code == errno.EADDRINUSE and not self.is_listening
        except Exception:
            # Nothing that a VMM hands over may end the supervisor: an address past all memory, say.
            code = errno.EFAULT
        response = Response(notification.id, 0, -code, 0)
        try:
            self._libc.ioctl(self.listener, NOTIF_SEND, ctypes.byref(response))
        except OSError:
            pass

    def _bind(self, notification: Notification) -> None:
        wanted = self._address(notification)
        if not self._policy.may_listen(wanted):
            raise RefusedError(errno.EACCES)
        listen = self._policy.listen
        family = self._family(notification)
        if family == AF_INET and listen.family == AF_INET6:
            raise RefusedError(errno.EAFNOSUPPORT)
        own = self._libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
        try:
            # For the claim, and for what an earlier run left in TIME_WAIT.
            set_socket_option(self._libc, own, SOL_SOCKET, SO_REUSEADDR, 1)
            self._bound_clients(own)
            if family == AF_INET6:
                set_socket_option(self._libc, own, IPPROTO_IPV6, IPV6_V6ONLY, 0)
            sockaddr = listen.sockaddr(family)
            self._claim.share_while(lambda: self._libc.bind(own, sockaddr, len(sockaddr)))
            self._replace(notification, own)
        finally:
            os.close(own)

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

    def _listen(self, notification: Notification) -> None:
        """listen(2) without a bind would take a port of the kernel's choice."""
        socket = self._socket(notification)
        try:
            if self._local(socket) != self._policy.listen:
                raise RefusedError(errno.EACCES)
            backlog = c_int32(notification.arguments[1]).value
            self._claim.share_while(lambda: self._libc.listen(socket, backlog))
            self.is_listening = True
        finally:
            os.close(socket)

    def _connect(self, notification: Notification) -> None:
        wanted = self._address(notification)
        if wanted is None or not self._policy.may_connect(wanted):
            raise RefusedError(errno.EACCES)
        family = self._family(notification)
        if family == AF_INET and wanted.family == AF_INET6:
            raise RefusedError(errno.EAFNOSUPPORT)
        # The VMM waits for the end of the connect by poll; this process must not wait.
        own = self._libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
        try:
            sockaddr = wanted.sockaddr(family)
            try:
                self._libc.connect(own, sockaddr, len(sockaddr))
            except BlockingIOError:
                self._replace(notification, own)
                raise
            self._replace(notification, own)
        finally:
            os.close(own)

    def _replace(self, notification: Notification, own: int) -> None:
        """Put a socket of ours in the place of the one that the call is about."""
        number = c_int32(notification.arguments[0]).value
        added = AddDescriptor(notification.id, ADDFD_FLAG_SETFD, own, number, os.O_CLOEXEC)
        self._libc.ioctl(self.listener, NOTIF_ADDFD, ctypes.byref(added))

    def _address(self, notification: Notification) -> Endpoint | None:
        pointer, size = notification.arguments[1], notification.arguments[2]
        data = os.pread(self._memory, min(size, MAX_SOCKADDR_BYTES), pointer)
        return model.from_sockaddr(data)

    def _socket(self, notification: Notification) -> int:
        """Our own descriptor of the socket that the call is about.

        The notification is checked after that: until then the process could have been another.
        """
        number = c_int32(notification.arguments[0]).value
        socket = self._libc.pidfd_getfd(self._pidfd, number, 0)
        try:
            self._libc.ioctl(self.listener, NOTIF_ID_VALID, ctypes.byref(c_uint64(notification.id)))
        except OSError:
            os.close(socket)
            raise
        return socket

    def _local(self, socket: int) -> Endpoint | None:
        buffer = ctypes.create_string_buffer(MAX_SOCKADDR_BYTES)
        size = c_uint32(MAX_SOCKADDR_BYTES)
        self._libc.getsockname(socket, buffer, size)
        return model.from_sockaddr(buffer.raw[: size.value])

    def _family(self, notification: Notification) -> int:
        """Raises RefusedError if the call is about anything but an IP socket."""
        socket = self._socket(notification)
        try:
            buffer = ctypes.create_string_buffer(MAX_SOCKADDR_BYTES)
            self._libc.getsockname(socket, buffer, c_uint32(MAX_SOCKADDR_BYTES))
        finally:
            os.close(socket)
        family = int.from_bytes(buffer.raw[:2], "little")
        if family not in (AF_INET, AF_INET6):
            raise RefusedError(errno.EACCES)
        return family
