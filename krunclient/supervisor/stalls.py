"""Sends of the VMM's that a client holds up by reading nothing, where a stop waits for them.

libkrun sends on the one thread that serves all of a VM's sockets and its console, and on sockets
that block: while a client takes nothing, no other client is served, and a stop does not get through
to the app.
"""

from __future__ import annotations

import os
from ctypes import c_uint32, create_string_buffer

from krunclient.bindings.libc import (
    BYTES_ACKED,
    IPPROTO_TCP,
    SHUT_RDWR,
    SO_SNDBUFFORCE,
    SOL_SOCKET,
    TCP_INFO,
    set_socket_option,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.supervisor.loop import Loop

STALL_SECONDS = 0.25
WIDE_BYTES, MAX_WIDE_BYTES = 2**25, 2**27  # of the host's memory, for a socket and for a VM
SENDING = ("sendto", "sendmsg")


class StalledSends:
    def __init__(self, libc: Libc, architecture: Architecture, process: int, pidfd: int) -> None:
        self._libc = libc
        self._pidfd = pidfd
        self._tasks = f"/proc/{process}/task"
        self._sending = {str(architecture.syscalls[name]) for name in SENDING}
        self._seen: set[tuple[str, bytes]] = set()
        self._room = MAX_WIDE_BYTES

    def keep_releasing(self, loop: Loop) -> None:
        """From now on, as long as the phase lasts."""
        self.release()
        loop.start_timer("stalls", STALL_SECONDS, lambda: self.keep_releasing(loop))

    def release(self) -> None:
        """Let each send go on of which no byte has got further since the last time.

        The kernel takes more for the client, if this process may ask for that; else the socket is
        shut down, and what libkrun has sent by then still reaches the client.
        """
        seen = set()
        for call in self._sends():
            try:
                socket = self._libc.pidfd_getfd(self._pidfd, int(call.split()[2], 16), 0)
                try:
                    state = (call, self._acknowledged(socket))
                    seen.add(state)
                    if state in self._seen and not self._widened(socket):
                        self._libc.shutdown(socket, SHUT_RDWR)
                finally:
                    os.close(socket)
            except OSError:
                pass  # it is no TCP socket, or has been closed meanwhile
        self._seen = seen

    def _widened(self, socket: int) -> bool:
        """Whether the socket has got room for WIDE_BYTES, which takes CAP_NET_ADMIN, socket(7). The
        kernel wakes who waits for room.
        """
        if self._room < WIDE_BYTES:
            return False
        try:
            # The kernel takes half of it for its own bookkeeping.
            set_socket_option(self._libc, socket, SOL_SOCKET, SO_SNDBUFFORCE, WIDE_BYTES)
        except PermissionError:
            return False
        self._room -= WIDE_BYTES
        return True

    def _sends(self) -> list[str]:
        """Each thread that is inside a send: its id, the call and its arguments, as
        proc_pid_syscall(5) has them.
        """
        found = []
        try:
            for task in os.listdir(self._tasks):
                with open(f"{self._tasks}/{task}/syscall") as file:
                    call = file.read()
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
