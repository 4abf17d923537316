"""The VMM child, from its fork to the start of the guest: it confines itself, step by step.

Each step needs what the next one takes away, so their order is the design: the libraries and the
user first; then the namespaces and the mounts; then limits, capabilities and Landlock; and last
the seccomp filter, under which the VM is made.
"""

from __future__ import annotations

import os

from krunclient import initconfig, report, vm
from krunclient.bindings import libkrun
from krunclient.bindings.libc import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGINT,
    SIGKILL,
    STOP_SIGNALS,
    SignalSet,
)
from krunclient.errors import HostError, LaunchError, PermissionDeniedError, VmError, reason
from krunclient.log import write_all
from krunclient.sandbox import landlock, lifeline, mounts, privileges, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from krunclient.bindings.libc import Libc
    from krunclient.plan import Plan

# The child's descriptors beside 0, 1 and 2, which become the guest's; the overlay's claim follows.
LOG, REPORT, GO = 3, 4, 5
GUEST_ROOT = f"/{mounts.GUEST}"


def main(plan: Plan, libc: Libc, supervisor: int, inherited: tuple[int, ...]) -> NoReturn:
    """Never returns. An error goes to the supervisor, which alone speaks to the user."""
    report_to = inherited[1]
    try:
        keep_descriptors(libc, inherited)
        report_to = REPORT
        die_with(libc, supervisor)
        # A terminal's ^C is for the supervisor, which decides what the guest hears of it.
        os.setsid()
        leave_the_terminal()
        # A stop is the supervisor's to ask for, by SIGINT. Who sends a signal to both, as systemd
        # does, would else end the VMM before the app has heard of it.
        for number in STOP_SIGNALS:
            libc.signal(number, SIG_DFL if number == SIGINT else SIG_IGN)
        libc.sigprocmask(SIG_SETMASK, SignalSet(), None)
        # Root's cache, where the libraries are, is closed to other users.
        krun = libkrun.load(libc, plan.libraries.libkrun, plan.libraries.libkrunfw)
        config = initconfig.encode(plan, libkrun.init_dialect(krun))
        if plan.user is not None:
            privileges.become(plan.user)
            die_with(libc, supervisor)  # a change of user has undone it
            from krunclient import host

            host.check_kvm()
        root = plan.root_path
        if plan.sandbox:
            root = confine(plan, libc, krun, config, supervisor)
        vm.start(plan, libc, krun, config, root, LOG)
    except LaunchError as error:
        report.send(report_to, error)
    except OSError as error:
        report.send(
            report_to,
            HostError(
                "the VMM can't be set up",
                plan.root_path,
                error.strerror or reason(error),
                "see what this host lacks by krunclient --check",
            ),
        )
    except BaseException as error:
        report.send(
            report_to,
            VmError(
                "the VM could not be created",
                plan.root_path,
                type(error).__name__,
                "this is a fault of krunclient: please report it",
            ),
        )
    finally:
        os._exit(VmError.status)


def die_with(libc: Libc, supervisor: int) -> None:
    """Let the kernel kill this process when the supervisor is gone, prctl(2)."""
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(VmError.status)  # it died before the line above; nobody is left to be told


def keep_descriptors(libc: Libc, inherited: tuple[int, ...]) -> None:
    """Leave the child 0 to 2 and these, from LOG on, and nothing else. Raises VmError."""
    above = max(*inherited, LOG + len(inherited)) + 1
    try:
        for position, descriptor in enumerate(inherited):
            os.dup2(descriptor, above + position, inheritable=False)
    except OSError as error:
        raise VmError(
            "the VM could not be created",
            f"descriptor {above + position}",
            reason(error),
            "allow more open files, by ulimit -n",
        ) from None
    for position in range(len(inherited)):
        os.dup2(above + position, LOG + position, inheritable=False)
    # Above the limit on open files there can be some as well, from when it was higher.
    libc.close_range(LOG + len(inherited), 2**32 - 1, 0)


def leave_the_terminal() -> None:
    """Keep the keyboard from libkrun: with a terminal to read it can't be asked to type ^C, and a
    guest could not be stopped but by force. Output to a terminal could be read from as well.

    Raises PermissionDeniedError for a terminal of another user's.
    """
    if os.isatty(0):
        os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
    for number in (1, 2):
        if os.isatty(number):
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
            try:
                os.dup2(os.open(f"/proc/self/fd/{number}", flags), number)
            except PermissionError as error:
                raise PermissionDeniedError(
                    "the guest's output can't be shown",
                    "standard output" if number == 1 else "standard error",
                    f"{reason(error)}: it is a terminal of another user",
                    "redirect it, through a pipe to cat, say",
                ) from None


def confine(plan: Plan, libc: Libc, krun: libkrun.Krun, config: bytes, supervisor: int) -> str:
    """Put every wall around this process. Returns where the guest's root is now.

    Raises LaunchError or OSError.
    """
    unprivileged = os.geteuid() != 0
    in_memory = krun.has("krun_fs_add_overlay_file")
    steps = mounts.operations(
        plan.files,
        user_namespace=unprivileged,
        config_file=None if in_memory else initconfig.PATH,
    )
    # A process without privileges that can't be dumped can't be supervised by another one.
    libc.prctl(PR_SET_DUMPABLE, int(unprivileged), 0, 0, 0)
    privileges.enter_namespaces(libc)
    sources = mounts.open_sources(steps)
    mounts.perform(libc, steps, sources, config)
    for descriptor in sources.values():
        os.close(descriptor)
    if plan.user is not None:
        # The supervisor is root and needs no leave; that user's other processes get none.
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    privileges.set_limits(libc, plan.memory_mib, plan.vcpus, user_namespace=unprivileged)
    writable = any(not volume.read_only for volume in plan.files.volumes)
    privileges.drop_capabilities(libc, set_id_bits=not writable)
    abi = landlock.version(libc)
    allowed = landlock.rules(GUEST_ROOT, "/dev/kvm", "/proc/self/fd", abi) if abi else ()
    landlock.restrict(libc, allowed, abi)
    lifeline.start(libc, plan.machine, supervisor)
    # A file on a volume that runs as its owner would run so for every user of the host.
    wait_for_supervision(
        libc, seccomp.assemble(plan.machine, os.getpid(), set_id_bits=not writable)
    )
    return GUEST_ROOT


def wait_for_supervision(libc: Libc, program: Sequence[seccomp.Instruction]) -> None:
    """Install the filter, hand its listener to the supervisor, and keep no hold of it.

    Whoever has the listener decides on the calls that the filter stops: the VMM must not.
    """
    try:
        listener = seccomp.install(libc, program)
    except OSError as error:
        raise HostError(
            "the sandbox can't be made",
            "a seccomp filter with notifications",
            reason(error),
            "use Linux 5.11 or later with CONFIG_SECCOMP_FILTER",
        ) from None
    write_all(REPORT, report.LISTENER + b"%d\n" % listener)
    if not os.read(GO, 1):
        os._exit(VmError.status)  # the supervisor is gone
    os.close(listener)
    os.close(GO)
