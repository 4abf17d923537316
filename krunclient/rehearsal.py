"""A launch up to its guest, for --check: a child goes through what the VMM does to itself, by the
same functions, and this process supervises it as a launch would.
"""

from __future__ import annotations

import os
import select

from krunclient import report
from krunclient.bindings.libc import AF_INET, SOCK_CLOEXEC, SOCK_STREAM
from krunclient.errors import SEE_LIMITS, VmError
from krunclient.host import facts
from krunclient.model import BOUNDED, INIT_FILE, KVM, Endpoint
from krunclient.report import Report
from krunclient.sandbox import confinement, privileges, process
from krunclient.sandbox.confine import Supervisor, confine
from krunclient.secret import Secret
from krunclient.supervisor import children
from krunclient.supervisor.claims import PortClaim
from krunclient.supervisor.mappedport import MappedPort
from krunclient.supervisor.notifications import Notifications, supervision_error
from krunclient.supervisor.sockets import SocketSupervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.config import Config
    from krunclient.supervisor.children import Child

DONE = 3  # the status of a child that did what it was to do: a library may end it before
# An address that no policy allows (TEST-NET-1 of RFC 5737): the call never reaches the network.
REFUSED = Endpoint(packed=bytes((192, 0, 2, 1)), port=1)


class Rehearsal:
    """One of a launch with this configuration: each of its steps is a check of its own, and none
    leaves anything.
    """

    def __init__(self, libc: Libc, architecture: Architecture, config: Config) -> None:
        self._libc = libc
        self._architecture = architecture
        self._config = config

    def confine(self, supervisor: Supervisor) -> None:
        """What the VMM does, and one call that the supervisor must refuse."""
        # Whether there is a KVM is another check's question.
        device = KVM if os.path.exists(KVM) else os.devnull
        walls = confinement.make(
            self._config.guest,
            self._config.files,
            user=self._config.user,
            vmm_uid=facts.vmm_uid(self._config),
            landlock_abi=facts.landlock_abi(self._libc),
            hard_limits=facts.hard_limits(self._libc, BOUNDED),
            window_mib=0,
            init_file=INIT_FILE,
            kvm_device=device,
        )
        confine(walls, self._libc, self._architecture, supervisor, Secret(""), {})
        socket = self._libc.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
        address = REFUSED.sockaddr(AF_INET)
        try:
            self._libc.connect(socket, address, len(address))
        except PermissionError:
            return
        why, remedy = "a call that it must refuse went through", "please report it"
        raise VmError("the sandbox can't be made", "supervision of sockets", why, remedy)

    def in_child(self, action: Callable[[Supervisor], object], *, as_user: bool = True) -> None:
        """Do something supervised as the VMM is: as the user that it runs as, or as it does before
        it becomes that one.

        Raises the error that it ended with.
        """

        def main(parent: int, pipes: tuple[int, ...]) -> NoReturn:
            _, report_to, go = pipes
            process.die_with(self._libc, parent)
            if self._config.user is not None and as_user:
                privileges.switch_user(self._config.user)
                process.die_with(self._libc, parent)
            action(Supervisor(pid=parent, report=report_to, go=go))
            os._exit(DONE)

        child = children.start(main)
        told, status = Report(), 0
        try:
            while data := os.read(child.report, report.MAX_BYTES):
                told.feed(data)
                listener = told.take_listener()
                if listener is not None:
                    self._answer_one_call(child, listener)
        finally:
            os.close(child.go)
            _, status = os.waitpid(child.pid, 0)
            for descriptor in (child.report, child.log, child.pidfd):
                os.close(descriptor)
        failure = told.error("a child of --check")
        if failure is not None:
            raise failure
        if os.waitstatus_to_exitcode(status) != DONE:
            how = f"by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "by itself"
            what, why = "the check has ended", f"it was ended {how} before it was done"
            raise VmError(what, "a child of --check", why, SEE_LIMITS)

    def _answer_one_call(self, child: Child, listener: int) -> None:
        """The supervisor's half. Raises LaunchError."""
        port = MappedPort(self._libc, self._config.policy, PortClaim(self._libc, -1, ()))
        try:
            sockets = SocketSupervisor(
                *(self._libc, self._architecture, self._config.policy, port),
                Notifications(self._libc, child.pid, child.pidfd, listener),
            )
        except OSError as error:
            raise supervision_error("the VMM's", error) from None
        os.write(child.go, b"\n")
        # The child's one call, or its end.
        poll = select.poll()
        for descriptor in (sockets.listener, child.pidfd):
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        sockets.answer()
