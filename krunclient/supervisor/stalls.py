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
    BYTES_ACKED,
    IPPROTO_TCP,
    SHUT_RDWR,
    SO_SNDBUFFORCE,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_INFO,
    set_socket_option,
    sockaddr_of,
)
from krunclient.supervisor import tcptable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.supervisor.loop import Loop

LOOK_SECONDS = 0.5  # between two looks while nothing is to be stopped: 0.1 ms of processor each
STALL_SECONDS = 0.25
WIDE_BYTES, MAX_WIDE_BYTES = 2**26, 2**28  # of the host's memory, for a socket and for a VM
SENDING = ("sendto", "sendmsg")
MAX_CALL_BYTES = 256  # nine numbers


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
            self._keep(self._widened, LOOK_SECONDS, loop)

    def keep_releasing(self, loop: Loop) -> None:
        """From now on, as long as the phase lasts, let each stalled send go on: as above, or else
        its socket is shut down, and what libkrun has sent by then still reaches the client.
        """
        self._keep(self._release, STALL_SECONDS, loop)

    def _keep(self, doing: Callable[[int], object], seconds: float, loop: Loop) -> None:
        for socket in self._stalled():
            doing(socket)
        loop.start_timer("stalls", seconds, lambda: self._keep(doing, seconds, loop))

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
            if self._wide:
                self._wide &= connections()
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
        """Its two ends, as `connections` has them. Raises OSError."""
        local = sockaddr_of(self._libc.getsockname, socket)
        peer = sockaddr_of(self._libc.getpeername, socket)
        return b"%b %b" % (tcptable.end(local), tcptable.end(peer))

    def _release(self, socket: int) -> None:
        try:
            if not self._widened(socket):
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


def connections() -> set[bytes]:
    """The two ends of each connection of this host that holds memory."""
    return {
        b"%b %b" % (local, peer)
        for local, peer, state in tcptable.sockets()
        if state != tcptable.TIME_WAIT
    }
