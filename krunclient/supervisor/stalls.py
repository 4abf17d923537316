"""Sends of the VMM's that a client holds up by reading nothing, and all others with it.

libkrun sends on the one thread that serves all of a VM's sockets and its console, and on sockets
that block: while a client takes nothing, no other client is served, and a stop does not get through
to the app.
"""

from __future__ import annotations

import os
from ctypes import c_uint32, create_string_buffer

from krunclient.bindings.libc import (
    AF_INET,
    AF_INET6,
    BYTES_ACKED,
    IPPROTO_TCP,
    SHUT_RDWR,
    SO_SNDBUFFORCE,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_INFO,
    set_socket_option,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.supervisor.loop import Loop

LOOK_SECONDS = 0.5  # between two looks while nothing is to be stopped: 0.1 ms of processor each
STALL_SECONDS = 0.25
WIDE_BYTES, MAX_WIDE_BYTES = 2**26, 2**28  # of the host's memory, for a socket and for a VM
SENDING = ("sendto", "sendmsg")
MAX_CALL_BYTES = 256  # nine numbers
SOCKADDR_BYTES = 28  # struct sockaddr_in6
TCP_TIME_WAIT = b"06"  # <net/tcp_states.h>


class StalledSends:
    """A send is stalled of which no byte has got further from one look to the next."""

    def __init__(self, libc: Libc, architecture: Architecture, process: int, pidfd: int) -> None:
        self._libc = libc
        self._pidfd = pidfd
        self._process = f"/proc/{process}"
        self._sending = {str(architecture.syscalls[name]) for name in SENDING}
        self._seen: set[tuple[str, bytes]] = set()
        self._wide: set[bytes] = set()

    def keep_widening(self, loop: Loop) -> None:
        """From now on, as long as the phase lasts, let the kernel take more of a stalled send for
        its client. Without the right to that, nothing is done.
        """
        if self._may_widen():
            self._widen_from_time_to_time(loop)

    def keep_releasing(self, loop: Loop) -> None:
        """From now on, as long as the phase lasts, let each stalled send go on: as above, or else
        its socket is shut down, and what libkrun has sent by then still reaches the client.
        """
        for socket in self._stalled():
            if not self._widened(socket):
                self._shut_down(socket)
        loop.start_timer("stalls", STALL_SECONDS, lambda: self.keep_releasing(loop))

    def _widen_from_time_to_time(self, loop: Loop) -> None:
        for socket in self._stalled():
            self._widened(socket)
        loop.start_timer("stalls", LOOK_SECONDS, lambda: self._widen_from_time_to_time(loop))

    def _stalled(self) -> Iterator[int]:
        """A descriptor of the socket of each stalled send, for as long as it is looked at."""
        seen = set()
        for call in self._sends():
            try:
                socket = self._libc.pidfd_getfd(self._pidfd, int(call.split()[2], 16), 0)
                try:
                    state = (call, self._acknowledged(socket))
                    seen.add(state)
                    if state in self._seen:
                        yield socket
                finally:
                    os.close(socket)
            except OSError:
                pass  # it is no TCP socket, or has been closed meanwhile
        self._seen = seen

    def _may_widen(self) -> bool:
        try:
            own = self._libc.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
            try:
                self._give_room(own)
            finally:
                os.close(own)
        except OSError:
            return False
        return True

    def _widened(self, socket: int) -> bool:
        """Whether the socket has got room for WIDE_BYTES, which takes CAP_NET_ADMIN, socket(7). The
        kernel wakes who waits for room.
        """
        try:
            connection = self._connection(socket)
            if connection in self._wide:
                return False
            # The kernel keeps what it has taken also after the VMM has closed the socket.
            self._wide &= _connections() if self._wide else set()
            if (len(self._wide) + 1) * WIDE_BYTES > MAX_WIDE_BYTES:
                return False
            self._give_room(socket)
        except OSError:
            return False
        self._wide.add(connection)
        return True

    def _give_room(self, socket: int) -> None:
        """The kernel doubles what is asked for, socket(7). Raises OSError."""
        set_socket_option(self._libc, socket, SOL_SOCKET, SO_SNDBUFFORCE, WIDE_BYTES // 2)

    def _connection(self, socket: int) -> bytes:
        """Its two ends, as `_connections` has them. Raises OSError."""
        local, peer = create_string_buffer(SOCKADDR_BYTES), create_string_buffer(SOCKADDR_BYTES)
        self._libc.getsockname(socket, local, c_uint32(SOCKADDR_BYTES))
        self._libc.getpeername(socket, peer, c_uint32(SOCKADDR_BYTES))
        return b"%b %b" % (_end(local.raw), _end(peer.raw))

    def _shut_down(self, socket: int) -> None:
        try:
            self._libc.shutdown(socket, SHUT_RDWR)
        except OSError:
            pass  # it has ended meanwhile

    def _sends(self) -> list[str]:
        """Each thread that is inside a send: its id, the call and its arguments, as
        proc_pid_syscall(5) has them.
        """
        found = []
        try:
            for task in os.listdir(f"{self._process}/task"):
                file = os.open(f"{self._process}/task/{task}/syscall", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    call = os.read(file, MAX_CALL_BYTES).decode()
                finally:
                    os.close(file)
                if call.split(" ", 1)[0] in self._sending:
                    found.append(f"{task} {call}")
        except OSError:
            pass  # it ends
        return found

    def _acknowledged(self, socket: int) -> bytes:
        """How many bytes the client has acknowledged, which grows and never shrinks."""
        info = create_string_buffer(BYTES_ACKED.stop)
        size = c_uint32(BYTES_ACKED.stop)
        self._libc.getsockopt(socket, IPPROTO_TCP, TCP_INFO, info, size)
        return info.raw[BYTES_ACKED]


def _connections() -> set[bytes]:
    """The two ends of each connection of this host that holds memory, by proc_net_tcp.rst of the
    kernel.
    """
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, "rb") as file:
                for line in file:
                    _, local, peer, state, *_ = line.split(None, 4)
                    if state != TCP_TIME_WAIT:
                        found.add(b"%b %b" % (local, peer))
        except FileNotFoundError:
            continue
    return found


def _end(sockaddr: bytes) -> bytes:
    """An address and a port as those tables write them: each word as the processor reads it."""
    port = int.from_bytes(sockaddr[2:4], "big")
    address = (
        sockaddr[8:24] if int.from_bytes(sockaddr[:2], "little") == AF_INET6 else sockaddr[4:8]
    )
    words = (address[start : start + 4] for start in range(0, len(address), 4))
    return b"%b:%04X" % (b"".join(b"%08X" % int.from_bytes(word, "little") for word in words), port)
