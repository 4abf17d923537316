"""The process that was exec'd: forks the VMM child, watches it, and ends with a true status.

It never loads libkrun.
"""

from __future__ import annotations

import os

from krunclient import claims, memory, vmm, watch
from krunclient.bindings.libc import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    SFD_NONBLOCK_CLOEXEC,
    SIG_BLOCK,
    SIGKILL,
    SIGTTOU,
    SignalSet,
)
from krunclient.sandbox import mounts, privileges
from krunclient.vmm import STOP_SIGNALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.log import Log
    from krunclient.plan import Plan


def run(plan: Plan, libc: Libc, log: Log) -> int:
    """Run the VM to its end. Returns krunclient's exit status.

    Raises LaunchError for what could not be claimed or set up, VmError where the VM ended without
    the app's status.
    """
    # Blocked signals are queued even when they were ignored at the start, as under nohup. The
    # last one would stop a background job that gives the terminal its settings back.
    libc.sigprocmask(SIG_BLOCK, SignalSet.of(*STOP_SIGNALS, SIGTTOU), None)
    signals = libc.signalfd(-1, SignalSet.of(*STOP_SIGNALS), SFD_NONBLOCK_CLOEXEC)
    if plan.die_with_parent:
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    listen = plan.policy.listen
    log.write(
        "info",
        "start",
        f"{plan.root_path} on {listen.text()}: {plan.vcpus} vCPUs, {plan.memory_mib} MiB,"
        f" libkrun {plan.libraries.origin}, sandbox {'strict' if plan.sandbox else 'off'}",
        libkrun=plan.libraries.libkrun,
        vcpus=plan.vcpus,
        memory_mib=plan.memory_mib,
    )
    claimed = claims.claim_port(libc, listen)
    if plan.files.overlay is not None:
        as_user(plan, mounts.prepare_overlay, plan.files.overlay)
        claimed += (claims.claim_overlay(plan.files.overlay),)
    memory.hide_values()
    privileges.forbid_core_dumps(libc)
    log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
    report_reader, report_writer = os.pipe2(os.O_CLOEXEC)
    go_reader, go_writer = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        inherited = (log_writer, report_writer, go_reader, *claimed)
        vmm.main(plan, libc, supervisor, inherited)
    for descriptor in (log_writer, report_writer, go_reader):
        os.close(descriptor)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    log.write("info", "vmm-started", f"the VMM is process {child}", vmm_pid=child)
    terminal = _Terminal()
    try:
        watching = watch.Watch(
            plan, libc, log, child, signals, log_reader, report_reader, go_writer
        )
        return watching.run()
    finally:
        terminal.restore()


def as_user(plan: Plan, action: Callable[[str], None], path: str) -> None:
    """Do something to the overlay as the user that the VMM runs as, so that it is that user's."""
    if plan.user is None:
        action(path)
        return
    os.seteuid(0)
    os.setegid(plan.user.gid)
    os.seteuid(plan.user.uid)
    try:
        action(path)
    finally:
        os.seteuid(0)
        os.setegid(0)


class _Terminal:
    """The terminal's settings at the start: libkrun changes them, and a VMM that is killed can't
    give them back.
    """

    def __init__(self) -> None:
        self._descriptor = next((number for number in (0, 1, 2) if os.isatty(number)), None)
        if self._descriptor is not None:
            import termios

            self._settings = termios.tcgetattr(self._descriptor)

    def restore(self) -> None:
        if self._descriptor is not None:
            import termios

            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._settings)
