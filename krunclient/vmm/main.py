"""The VMM child's steps in their order: libraries, user, confinement, start of the guest."""

from __future__ import annotations

import os

from krunclient import report
from krunclient.bindings.libc import (
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGINT,
    STOP_SIGNALS,
    SignalSet,
)
from krunclient.errors import VmError, unexpected
from krunclient.host import kvm
from krunclient.sandbox import privileges, process
from krunclient.sandbox.confine import Supervisor, confine
from krunclient.vmm import descriptors, initfile, start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from krunclient.bindings.libc import Libc
    from krunclient.plan import Plan


def main(plan: Plan, libc: Libc, supervisor: int, inherited: tuple[int, ...]) -> NoReturn:
    """Never returns. An error goes to the supervisor, which alone speaks to the user."""
    log, report_to, go, *others = inherited
    try:
        descriptors.keep(libc, log, report_to, go, tuple(others))
        report_to = descriptors.REPORT
        run(plan, libc, supervisor)
    except BaseException as error:
        report.send_error(report_to, unexpected(error))
    finally:
        os._exit(VmError.status)


def run(plan: Plan, libc: Libc, supervisor: int) -> NoReturn:
    """Raises LaunchError or OSError."""
    process.die_with(libc, supervisor)
    # A terminal's ^C is for the supervisor, which decides what the guest hears of it.
    os.setsid()
    if not plan.facts.terminal:  # else these are the guest's end of a pseudo-terminal
        descriptors.leave_the_terminal()
    descriptors.keep_stderr_for_the_guest()
    # A stop is the supervisor's to ask for, by SIGINT. Who sends a signal to both, as systemd
    # does, would else end the VMM before the app has heard of it.
    for number in STOP_SIGNALS:
        libc.signal(number, SIG_DFL if number == SIGINT else SIG_IGN)
    libc.sigprocmask(SIG_SETMASK, SignalSet(), None)
    process.set_limit(libc, "RLIMIT_NOFILE", plan.facts.open_files)
    # Before the change of user: root's cache, where the libraries are, is closed to others.
    pair = plan.facts.libraries
    krun = start.load(libc, pair)
    dialect = initfile.dialect_of(pair)
    guest, network = plan.config.guest, plan.user_network
    started_by: tuple[str, ...] = ()
    opened = {}
    if network is not None:
        started_by = network.started_by(plan.config.policy.guest_port)
        opened[network.guest_program] = os.open(network.guest_program, os.O_RDONLY | os.O_CLOEXEC)
    init_file = initfile.encode(plan.facts.exec_path, guest, dialect, started_by)
    if plan.config.user is not None:
        privileges.switch_user(plan.config.user)
        process.die_with(libc, supervisor)  # a change of user has undone it
        kvm.check()
    root = plan.config.files.root_path
    if plan.confinement is not None:
        supervised_by = Supervisor(pid=supervisor, report=descriptors.REPORT, go=descriptors.GO)
        architecture = plan.facts.architecture
        root = confine(plan.confinement, libc, architecture, supervised_by, init_file, opened)
    start.start(plan, libc, krun, init_file, root)
