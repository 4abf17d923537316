"""passt, from its fork to its end, and the network policy as it is enforced on its sockets.

passt connects for the guest to the host, and accepts for the host's clients to the guest. It has no
TCP socket that the supervisor did not make: each that it asks for is a fresh one of ours, its
connects are made here, in place, since it watches a socket from before that on, and in the place of
its listening socket it has a bell that rings. The real one is here. It is open only while the guest
listens, and passt gets what it accepts. No byte of a connection passes here.
"""

from __future__ import annotations

import errno
import os
from ctypes import create_string_buffer

from krunclient import log as events
from krunclient import model
from krunclient.bindings.libc import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SIGKILL,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    set_send_timeout,
    set_socket_option,
    socket_pair,
)
from krunclient.errors import HostError, LaunchError, VmError
from krunclient.log import write_all
from krunclient.report import Report
from krunclient.supervisor.loop import READABLE
from krunclient.supervisor.notifications import Notifications, RefusedError, supervision_error
from krunclient.usernet import LISTENS, NEWS, NO_LONGER, client_sockaddr, listen_sockaddr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.log import Log
    from krunclient.model import Endpoint, Policy
    from krunclient.plan import Plan
    from krunclient.supervisor.children import Child
    from krunclient.supervisor.loop import Loop
    from krunclient.supervisor.mappedport import MappedPort
    from krunclient.supervisor.notifications import Call
    from krunclient.usernet import UserNetwork

BACKLOG = 4096  # cut by net.core.somaxconn
RETRY_SECONDS = 0.5
MAX_LINE_BYTES = 4096
MAX_WHY_CHARACTERS = 200
MAX_LINES = 20  # a guest may be able to cause them
SEE_LOG = "see what the kernel's log says"
OTHER = "install passt 2023-03 or later, name it by --passt, or use --network tsi"
# passt watches a socket whose connect is under way. One that never was connected is found closed,
# and the guest's connection refused. (2023's passt leaves a guest without an answer all the same.)
REFUSED = errno.EINPROGRESS


def _family(libc: Libc) -> int:
    """Of sockets for both IPv6 and IPv4, or for IPv4 on a host without the other."""
    try:
        os.close(libc.socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0))
    except OSError:
        return AF_INET
    return AF_INET6


class Bell:
    """Readable for passt when a client waits. passt may change the flags of its end: no call of
    ours on it depends on them.
    """

    def __init__(self, libc: Libc) -> None:
        self._libc = libc
        self._own, self.of_passt = socket_pair(libc)

    def ring(self) -> None:
        try:
            self._libc.send(self._own, b"x", 1, MSG_DONTWAIT | MSG_NOSIGNAL)
        except OSError:
            pass  # it rings already, or passt does not want to hear it

    def fall_silent(self) -> None:
        try:
            self._libc.recv(self.of_passt, create_string_buffer(1), 1, MSG_DONTWAIT)
        except OSError:
            pass  # it did not ring


class PasstSockets:
    """Answers passt's calls. `has_started` once it listens, as it thinks."""

    def __init__(
        self,
        libc: Libc,
        architecture: Architecture,
        policy: Policy,
        network: UserNetwork,
        port: MappedPort,
        loop: Loop,
        called: Callable[[], None],
    ) -> None:
        self._libc = libc
        self._policy = policy
        self._network = network
        self._port = port
        self._loop = loop
        self._called = called
        self._bell = Bell(libc)
        self._family = _family(libc)
        self._listening: int | None = None
        self._clients = 0
        self.has_started = False
        self.calls = {
            architecture.syscalls["socket"]: self._socket,
            architecture.syscalls["bind"]: self._bind,
            architecture.syscalls["listen"]: self._listen,
            architecture.syscalls["connect"]: self._connect,
            architecture.syscalls["accept4"]: self._accept,
            architecture.syscalls["getsockname"]: self._tell_name,
        }

    def _socket(self, call: Call) -> int:
        """One kind, whatever it asks for: it can be connected to all that an address stands for,
        and serves where a socket is only needed to ask for an interface.
        """
        flags = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK
        own = self._libc.socket(self._family, flags, 0)
        try:
            if self._family == AF_INET6:
                set_socket_option(self._libc, own, IPPROTO_IPV6, IPV6_V6ONLY, 0)
            # A connect on it waits for no longer, whoever has made it blocking meanwhile.
            set_send_timeout(self._libc, own, 1)
            return call.give(own)
        finally:
            os.close(own)

    def _bind(self, call: Call) -> None:
        sockaddr = call.sockaddr()
        if int.from_bytes(sockaddr[:2], "little") == AF_NETLINK:
            socket = call.socket()
            try:
                self._libc.bind(socket, sockaddr, len(sockaddr))
            finally:
                os.close(socket)
            return
        wanted = model.from_sockaddr(sockaddr)
        if wanted is None or wanted.port != self._policy.listen.port:
            raise RefusedError(errno.EACCES)
        call.replace(self._bell.of_passt)

    def _listen(self, _call: Call) -> None:
        self.has_started = True

    def _connect(self, call: Call) -> None:
        wanted = call.address()
        if wanted is not None and wanted.packed == NEWS:
            self._hear(wanted)
            raise RefusedError(REFUSED)
        target = wanted and self._network.on_host(wanted)
        if target is None or not self._policy.may_connect(target):
            raise RefusedError(REFUSED)
        if target.family == AF_INET6 != self._family:
            raise RefusedError(REFUSED)
        socket = call.socket()
        try:
            sockaddr = target.sockaddr(self._family)
            self._libc.connect(socket, sockaddr, len(sockaddr))
        finally:
            os.close(socket)

    def _accept(self, call: Call) -> int:
        own = None if self._listening is None else self._accepted(self._listening)
        if own is None:
            self._wait_for_a_client()
            raise RefusedError(errno.EAGAIN)
        try:
            call.tell_address(client_sockaddr(self._clients))
            self._clients += 1
            return call.give(own)
        finally:
            os.close(own)

    def _accepted(self, listening: int) -> int | None:
        """None if no client waits any more."""
        try:
            return self._libc.accept4(listening, None, None, SOCK_CLOEXEC | SOCK_NONBLOCK)
        except (BlockingIOError, ConnectionError):
            return None

    def _tell_name(self, call: Call) -> None:
        """A passt of 2026 asks where each client came in, and resets one that came in elsewhere
        than where it listens as it thinks. It asks this of no other socket.
        """
        call.tell_address(listen_sockaddr(self._policy))

    def _wait_for_a_client(self) -> None:
        self._bell.fall_silent()
        if self._listening is not None:
            self._loop.watch(self._listening, READABLE, self._on_client)

    def _on_client(self) -> None:
        """Somebody waits to be accepted: passt is told, and asks for one after the other."""
        if self._listening is not None:
            self._loop.unwatch(self._listening)
            self._bell.ring()

    # What the guest's program tells

    def _hear(self, news: Endpoint) -> None:
        if news.port == LISTENS:
            self._open()
        elif news.port == NO_LONGER:
            self._close()

    def _open(self) -> None:
        if self._listening is not None:
            return
        own = None
        try:
            own = self._port.bound_socket(self._policy.listen.family)
            self._port.listen(own, BACKLOG)
        except OSError:
            if own is not None:
                os.close(own)
            # The guest tells it once alone.
            self._loop.start_timer("port", RETRY_SECONDS, self._open_later)
            return
        self._listening = own
        self._loop.watch(own, READABLE, self._on_client)

    def _open_later(self) -> None:
        self._open()
        self._called()

    def _close(self) -> None:
        self._loop.cancel_timer("port")
        if self._listening is not None:
            self._loop.unwatch(self._listening)
            os.close(self._listening)
            self._listening = None


class Passt:
    """The process: what it reports, what it says, and how it ends."""

    def __init__(
        self, plan: Plan, network: UserNetwork, libc: Libc, log: Log, port: MappedPort, child: Child
    ) -> None:
        self._plan = plan
        self._network = network
        self._libc = libc
        self._log = log
        self._port = port
        self._child = child
        self._report = Report()
        self._incomplete = b""
        self._last_line = "it said nothing"
        self._lines = 0
        self._sockets: PasstSockets | None = None

    @property
    def pid(self) -> int:
        return self._child.pid

    def watch(
        self, loop: Loop, called: Callable[[], None], failed: Callable[[LaunchError], None]
    ) -> None:
        """`called` when the mapped port can have changed, `failed` when passt has ended or can't be
        supervised.
        """
        for descriptor, handler in (
            (self._child.report, lambda: self._on_report(loop, called, failed)),
            (self._child.log, lambda: self._on_log(loop)),
            (self._child.pidfd, lambda: self._on_end(loop, failed)),
        ):
            os.set_blocking(descriptor, False)
            loop.watch(descriptor, READABLE, handler)

    def end(self) -> None:
        """End it, and wait for that."""
        os.kill(self._child.pid, SIGKILL)
        os.waitpid(self._child.pid, 0)

    def _on_report(
        self, loop: Loop, called: Callable[[], None], failed: Callable[[LaunchError], None]
    ) -> None:
        self._report.feed(loop.read(self._child.report))
        if self._report.is_full:
            loop.unwatch(self._child.report)
        listener = self._report.take_listener()
        if listener is None or self._sockets is not None:
            return
        try:
            notifications = Notifications(self._libc, self._child.pid, self._child.pidfd, listener)
        except OSError as error:
            failed(supervision_error("passt's", error))
            return
        self._sockets = sockets = PasstSockets(
            *(self._libc, self._plan.facts.architecture, self._plan.config.policy),
            *(self._network, self._port),
            *(loop, called),
        )

        def answer() -> None:
            notifications.answer(sockets.calls)
            called()

        loop.watch(notifications.listener, READABLE, answer)
        write_all(self._child.go, b"\n")
        os.close(self._child.go)

    def _on_log(self, loop: Loop) -> None:
        lines = (self._incomplete + loop.read(self._child.log)).split(b"\n")
        self._incomplete = lines.pop()[-MAX_LINE_BYTES:]
        for line in lines:
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        if text:
            self._last_line = text[:MAX_WHY_CHARACTERS]
            self._lines += 1
            if self._lines <= MAX_LINES:
                self._log.write(events.PASST, f"passt: {text}")

    def _on_end(self, loop: Loop, failed: Callable[[LaunchError], None]) -> None:
        loop.unwatch(self._child.pidfd)
        # What it has told before is still in the pipes.
        self._report.feed(loop.read(self._child.report))
        self._on_log(loop)
        self._hear(self._incomplete)
        failed(self._end_error())

    def _end_error(self) -> LaunchError:
        """What it has told, or what it last said."""
        reported = self._report.error(self._network.passt)
        if reported is not None:
            return reported
        why, thing = f"it has ended: {self._last_line}", self._network.passt
        if self._sockets is not None and self._sockets.has_started:
            return VmError("the network of the VM is gone", thing, why, SEE_LOG)
        return HostError("passt can't be used", thing, why, OTHER)
