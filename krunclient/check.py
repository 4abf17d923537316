"""--check: what this host offers for a VM, one line each, with what to do if it is missing.

It plays both processes: a child goes through what the VMM does to itself, by the same functions,
and this process supervises it as a launch would.
"""

from __future__ import annotations

import os
import re
import select

from krunclient import config, plan, report
from krunclient import options as rows
from krunclient.bindings import libc as libc_binding
from krunclient.bindings.arch import X86_64
from krunclient.bindings.libc import AF_INET, SOCK_CLOEXEC, SOCK_STREAM
from krunclient.errors import SEE_CHECK, SEE_LIMITS, HostError, VmError, unexpected
from krunclient.host import facts, kvm, libraries, passt, vcpu
from krunclient.log import one_line
from krunclient.model import FEW_OPEN_FILES, INIT_FILE, KVM, MORE_OPEN_FILES, Endpoint
from krunclient.record import Record
from krunclient.report import Report
from krunclient.sandbox import confinement, privileges, process
from krunclient.sandbox.confine import Supervisor, confine
from krunclient.secret import Secret
from krunclient.supervisor import children
from krunclient.supervisor.claims import PortClaim
from krunclient.supervisor.mappedport import MappedPort
from krunclient.supervisor.notifications import Notifications, supervision_error
from krunclient.supervisor.sockets import SocketSupervisor
from krunclient.vmm import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.cli import Options
    from krunclient.config import Config
    from krunclient.errors import LaunchError
    from krunclient.model import LibraryPair
    from krunclient.supervisor.children import Child

    Row = tuple[str, Callable[[], str]]

SEE_LOG = "see what the kernel's log says"
DONE = 3  # the status of a child that did what it was to do: a library may end it before
# An address that no policy allows (TEST-NET-1 of RFC 5737): the call never reaches the network.
REFUSED = Endpoint(packed=bytes((192, 0, 2, 1)), port=1)


class Finding(Record):
    """One line of the report: what was found, or the error that tells what is missing."""

    name: str
    found: str
    error: LaunchError | None = None

    def text(self) -> str:
        if self.error is None:
            return f"ok       {self.name}: {self.found}"
        error = self.error
        return f"missing  {self.name}: {error.thing}: {error.why}; {error.remedy}"

    def as_json(self) -> dict[str, str | bool]:
        if self.error is None:
            return {"name": self.name, "ok": True, "found": self.found}
        _, thing, why, remedy = self.error.args
        return {"name": self.name, "ok": False, "thing": thing, "why": why, "remedy": remedy}


def run(options: Options) -> tuple[str, int]:
    """The report, and the status: 0 when a VM can start, 69 when not.

    Raises UsageError for options that can't be used.
    """
    findings = list(_look(options))
    status = HostError.status if any(finding.error for finding in findings) else 0
    if options.value(rows.LOG_FORMAT) == "json":
        import json

        checks = [finding.as_json() for finding in findings]
        return json.dumps({"can_start": status == 0, "checks": checks}, indent=2), status
    lines = [finding.text() for finding in findings]
    lines.append("a VM can start" if status == 0 else "no VM can start")
    return "\n".join(one_line(line) for line in lines), status


def _look(options: Options) -> Iterator[Finding]:
    checks: tuple[Row, ...] = (("architecture", lambda: facts.find_architecture().machine),)
    try:
        architecture = facts.find_architecture()
    except HostError:
        pass  # without one, nothing else can be asked
    else:
        libc = libc_binding.load(architecture)
        checks += Check(libc, architecture, config.for_check(libc, options)).rows()
    for name, check in checks:
        try:
            yield Finding(name=name, found=check())
        except Exception as exception:
            error = unexpected(exception)
            if error.remedy == SEE_CHECK:
                error = type(error)(error.what, error.thing, error.why, SEE_LOG)
            yield Finding(name=name, found="", error=error)


class Check:
    """Each check tells what is there, or raises LaunchError or OSError."""

    def __init__(self, libc: Libc, architecture: Architecture, config: Config) -> None:
        self._libc = libc
        self._architecture = architecture
        self._config = config

    def rows(self) -> tuple[Row, ...]:
        return (
            ("kernel", lambda: os.uname().release),
            ("KVM", self._kvm),
            ("processors", self._processors),
            ("memory", self._memory),
            ("libkrun", self._libkrun),
            ("libkrunfw", self._libkrunfw),
            ("user namespaces", self._user_namespaces),
            ("sandbox", self._sandbox),
            ("Landlock", self._landlock),
            ("open files", self._open_files),
            ("passt", self._passt),
        )

    def _kvm(self) -> str:
        self._in_child(lambda _supervisor: kvm.check())
        about = f"{KVM}, {kvm.rights(KVM)}, API version {kvm.KVM_API_VERSION}"
        if self._architecture is not X86_64:
            return f"{about}; whether guests run was not tried"
        self._in_child(lambda _supervisor: vcpu.run_guests())
        return f"{about}, runs {vcpu.MODES} guests"

    def _processors(self) -> str:
        """Fewer than vCPUs are no failure: they take turns."""
        vcpus, processors = self._config.guest.vcpus, facts.processors()
        fewer = f", fewer than --cpus {vcpus}" if processors < vcpus else ""
        return f"{processors}{fewer}"

    def _memory(self) -> str:
        """Little is no failure: a guest takes its memory when it uses it."""
        available = facts.memory_mib("MemAvailable")
        found = f"{available} of {facts.memory_mib('MemTotal')} MiB available"
        wanted = self._config.guest.memory_mib
        return found if wanted <= available else f"{found}, less than --memory {wanted}"

    def _libkrun(self) -> str:
        pair = self._pair()
        # What a library does when it is loaded, and may end its process by, is done to a child.
        self._in_child(lambda _supervisor: start.load(self._libc, pair))
        version = os.path.realpath(pair.libkrun).rpartition(".so.")[2]
        known = f", version {version}" if version.replace(".", "").isdigit() else ""
        return f"{pair.libkrun} ({pair.libkrun_origin}){known}, API {pair.features.generation}"

    def _libkrunfw(self) -> str:
        pair = self._pair()
        with open(pair.libkrunfw, "rb") as file:
            found = re.search(rb"Linux version (\S+)", file.read())
        kernel = found[1].decode("utf-8", "replace") if found else "of an unknown version"
        return f"{pair.libkrunfw} ({pair.libkrunfw_origin}), Linux {kernel}"

    def _pair(self) -> LibraryPair:
        given = self._config.paths
        return libraries.find(given.libkrun, given.libkrunfw, self._architecture)

    def _user_namespaces(self) -> str:
        """None is a failure where one is needed."""
        switches = ", ".join(f"{name}={value}" for name, value in self._namespace_switches())
        try:
            self._in_child(
                lambda _supervisor: privileges.enter_namespaces(self._libc, user_namespace=True)
            )
        except HostError as error:
            if self._needs_user_namespace():
                raise
            return f"none ({error.why}), which is not needed here; {switches}"
        return f"allowed; {switches}"

    def _namespace_switches(self) -> Iterator[tuple[str, str]]:
        for name in privileges.USER_NAMESPACE_SWITCHES:
            value = privileges.switch(name)
            if value:
                yield name, value

    def _needs_user_namespace(self) -> bool:
        confined_user = self._config.sandbox and facts.vmm_uid(self._config) != 0
        return confined_user or self._config.network == "passt"

    def _sandbox(self) -> str:
        """Put the walls around a child, for real, and tell which one could not be had."""
        if not self._config.sandbox:
            plan.check_that_root_stays_whole(self._config, self._pair())
            return "off"
        walls = ["mount namespace", "overlayfs", "seccomp notifications"]
        self._in_child(self._confine)
        needs_user_namespace = facts.vmm_uid(self._config) != 0
        return ", ".join(["user namespace", *walls] if needs_user_namespace else walls)

    def _landlock(self) -> str:
        """No Landlock is no failure: it is the second wall."""
        abi = facts.landlock_abi(self._libc)
        return f"ABI {abi}" if abi else "this kernel has none; the sandbox stands without it"

    def _open_files(self) -> str:
        """Few are no failure: it depends on the guest how many it needs."""
        most = facts.open_files(self._libc)
        if most >= FEW_OPEN_FILES:
            return str(most)
        return f"{most}, few for a guest that knows many files; {MORE_OPEN_FILES}"

    def _passt(self) -> str:
        """None is a failure where it is asked for."""
        try:
            found = passt.find(self._config.paths.passt, self._config.paths.search)
        except HostError:
            if self._config.network == "passt":
                raise
            return "none, which only --network passt needs"
        if self._config.network == "passt":
            passt.check_cards(self._pair())
            passt.find_guest_program(self._architecture)
        return found

    def _confine(self, supervisor: Supervisor) -> None:
        """What the VMM does, and one call that the supervisor must refuse."""
        # Whether there is a KVM is another check's question.
        device = KVM if os.path.exists(KVM) else os.devnull
        walls = confinement.make(
            self._config.guest,
            self._config.files,
            user=self._config.user,
            vmm_uid=facts.vmm_uid(self._config),
            landlock_abi=facts.landlock_abi(self._libc),
            hard_limits=facts.hard_limits(self._libc),
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

    def _in_child(self, action: Callable[[Supervisor], object]) -> None:
        """Do something as the user that the VMM runs as, supervised as the VMM is.

        Raises the error that it ended with.
        """

        def main(parent: int, pipes: tuple[int, ...]) -> NoReturn:
            _, report_to, go = pipes
            process.die_with(self._libc, parent)
            if self._config.user is not None:
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
