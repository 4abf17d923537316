"""--check: what this host offers for a VM, one line each, with what to do if it is missing."""

from __future__ import annotations

import os
import re

from krunclient import config, plan
from krunclient import options as rows
from krunclient.bindings import libc as libc_binding
from krunclient.bindings.arch import X86_64
from krunclient.errors import SEE_CHECK, HostError, LaunchError, unexpected
from krunclient.host import facts, kvm, libraries, passt, vcpu
from krunclient.log import one_line
from krunclient.model import FEW_OPEN_FILES, KVM, MORE_OPEN_FILES
from krunclient.record import Record
from krunclient.rehearsal import Rehearsal
from krunclient.sandbox import privileges, process
from krunclient.supervisor import cgroup
from krunclient.vmm import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.cli import Options
    from krunclient.config import Config
    from krunclient.model import LibraryPair
    from krunclient.sandbox.confine import Supervisor

    Row = tuple[str, Callable[[], str]]

LIMITS_NEED_IT = "which only --cpu-quota, --memory-max and --pids-max need"
SEE_LOG = "see what the kernel's log says"


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
        self._rehearsal = Rehearsal(libc, architecture, config)

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
            ("cgroups", self._cgroups),
            ("metrics", self._metrics),
            ("open files", self._open_files),
            ("passt", self._passt),
        )

    def _kvm(self) -> str:
        self._rehearsal.in_child(lambda _supervisor: kvm.check())
        about = f"{KVM}, {kvm.rights(KVM)}, API version {kvm.KVM_API_VERSION}"
        if self._architecture is not X86_64:
            return f"{about}; whether guests run was not tried"
        self._rehearsal.in_child(lambda _supervisor: vcpu.run_guests())
        return f"{about}, runs {vcpu.MODES} guests"

    def _processors(self) -> str:
        """Fewer than vCPUs are no failure: they take turns."""
        vcpus, processors = self._config.guest.vcpus, facts.processors()
        fewer = f", fewer than --cpus {vcpus}" if processors < vcpus else ""
        return f"{processors}{fewer}"

    def _memory(self) -> str:
        """Little is no failure: a guest takes its memory when it uses it."""
        wanted = self._config.guest.memory_mib
        facts.check_memory(wanted, self._architecture)
        available, total = facts.memory_mib("MemAvailable"), facts.memory_mib("MemTotal")
        if available is None:
            return "not told by /proc/meminfo"
        less = f", less than --memory {wanted}" if available < wanted else ""
        return f"{available} of {total} MiB available{less}"

    def _libkrun(self) -> str:
        pair = self._pair()
        # What a library does when it is loaded, and may end its process by, is done to a child. A
        # launch loads it before the change of user as well.
        self._rehearsal.in_child(lambda _supervisor: start.load(self._libc, pair), as_user=False)
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
            self._rehearsal.in_child(self._enter_user_namespace)
        except HostError as error:
            if self._needs_user_namespace():
                raise
            return f"none ({error.why}), which is not needed here; {switches}"
        return f"allowed; {switches}"

    def _enter_user_namespace(self, _supervisor: Supervisor) -> None:
        process.set_dumpable(self._libc, True)  # which a change of user has undone
        privileges.enter_namespaces(self._libc, user_namespace=True)

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
        self._rehearsal.in_child(self._rehearsal.confine)
        needs_user_namespace = facts.vmm_uid(self._config) != 0
        return ", ".join(["user namespace", *walls] if needs_user_namespace else walls)

    def _landlock(self) -> str:
        """No Landlock is no failure: it is the second wall."""
        abi = facts.landlock_abi(self._libc)
        return f"ABI {abi}" if abi else "this kernel has none; the sandbox stands without it"

    def _cgroups(self) -> str:
        """None that can be used is a failure where limits are asked for."""
        try:
            own = cgroup.find()
            cgroup.check(own, self._config.limits)
        except (LaunchError, OSError) as error:
            if self._config.limits is not None:
                raise
            return f"{unexpected(error).why}, {LIMITS_NEED_IT}"
        return own

    def _metrics(self) -> str:
        path = self._config.monitoring.metrics
        if path is None:
            return "not asked for"
        directory = os.path.dirname(path)
        if not os.access(directory, os.W_OK | os.X_OK):
            there = os.path.isdir(directory)
            why = "this user can't write there" if there else "there is no such directory"
            raise HostError("--metrics can't be used", directory, why, "give another")
        return path

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
