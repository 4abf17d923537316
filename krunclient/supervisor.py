"""The process that was exec'd: forks the VMM child, watches it, and ends with a true status.

It never loads libkrun.
"""

from __future__ import annotations

import os

from krunclient import claims, memory, report
from krunclient.bindings.libc import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    SFD_NONBLOCK_CLOEXEC,
    SIG_BLOCK,
    SIG_DFL,
    SIGCHLD,
    SIGKILL,
    STOP_SIGNALS,
    SignalSet,
)
from krunclient.errors import VmError, reason
from krunclient.sandbox import privileges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, TypeVar

    from krunclient.bindings.libc import Libc
    from krunclient.log import Log
    from krunclient.plan import Plan

    Result = TypeVar("Result")


def run(plan: Plan, libc: Libc, log: Log) -> int:
    """Run the VM to its end. Returns krunclient's exit status.

    Raises LaunchError for what could not be claimed or set up, VmError where the VM ended without
    the app's status.
    """
    parent = os.getppid()
    # Blocked signals are queued even when they were ignored at the start, as under nohup.
    stop_signals = SignalSet.of(*STOP_SIGNALS)
    libc.sigprocmask(SIG_BLOCK, stop_signals, None)
    signals = libc.signalfd(-1, stop_signals, SFD_NONBLOCK_CLOEXEC)
    libc.signal(SIGCHLD, SIG_DFL)  # where it was ignored, a child's status would be lost
    listen = plan.policy.listen
    log.write(
        "info",
        "start",
        f"{plan.root_path} on {listen.text()}: {plan.vcpus} vCPU, {plan.memory_mib} MiB,"
        f" libkrun {plan.libraries.origin}, sandbox {'strict' if plan.sandbox else 'off'}",
        libkrun=plan.libraries.libkrun,
        vcpus=plan.vcpus,
        memory_mib=plan.memory_mib,
    )
    port_claim = claims.claim_port(libc, listen)
    if not plan.sandbox:
        port_claim.let_libkrun_bind()
    overlay_claim: tuple[int, ...] = ()
    if plan.files.overlay is not None:
        from krunclient.sandbox import mounts

        as_user(plan, mounts.prepare_overlay, plan.files.overlay)
        overlay_claim = (as_user(plan, claims.claim_overlay, plan.files.overlay),)
    if plan.die_with_parent:
        # Not before as_user: each change of user undoes it.
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), SIGKILL)
    memory.hide_values()
    privileges.forbid_core_dumps(libc)
    log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
    report_reader, report_writer = os.pipe2(os.O_CLOEXEC)
    go_reader, go_writer = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        # Each of the two processes imports what it alone needs, side by side.
        try:
            from krunclient import vmm
        except BaseException as error:
            give_up(report_writer, error)
        inherited = (log_writer, report_writer, go_reader, *overlay_claim)
        vmm.main(plan, libc, supervisor, inherited)
    from krunclient import watch

    for descriptor in (log_writer, report_writer, go_reader):
        os.close(descriptor)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    log.write("info", "vmm-started", f"the VMM is process {child}", vmm_pid=child)
    streams = _Streams()
    try:
        watching = watch.Watch(
            plan, libc, log, port_claim, child, signals, log_reader, report_reader, go_writer
        )
        return watching.run()
    finally:
        streams.restore()


def give_up(report_writer: int, error: BaseException) -> NoReturn:
    """End a child that could not even import its code, for want of descriptors or memory, say."""
    try:
        why = reason(error) if isinstance(error, OSError) else type(error).__name__
        remedy = "see which limit has been reached, by ulimit -a and the kernel's log"
        failure = VmError("the VM could not be created", "the VMM's own code", why, remedy)
        report.send(report_writer, failure)
    finally:
        os._exit(VmError.status)


def as_user(plan: Plan, action: Callable[[str], Result], path: str) -> Result:
    """Do something to the overlay as the user that the VMM runs as, so that it is that user's."""
    if plan.user is None:
        return action(path)
    os.seteuid(0)
    os.setegid(plan.user.gid)
    os.seteuid(plan.user.uid)
    try:
        return action(path)
    finally:
        os.seteuid(0)
        os.setegid(0)


class _Streams:
    """Whether standard input, output and error were blocking at the start: they are shared with
    others, and a VMM changes that.
    """

    def __init__(self) -> None:
        self._blocking = [(number, os.get_blocking(number)) for number in (0, 1, 2)]

    def restore(self) -> None:
        for number, blocking in self._blocking:
            os.set_blocking(number, blocking)
