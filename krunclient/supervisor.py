"""The process that was exec'd: forks the VMM child, watches it, and ends with a true status.

It never loads libkrun.
"""

from __future__ import annotations

import os

from krunclient import claims, memory
from krunclient.bindings.libc import (
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    SFD_NONBLOCK_CLOEXEC,
    SIG_BLOCK,
    SIGKILL,
    SIGTTOU,
    STOP_SIGNALS,
    SignalSet,
)
from krunclient.sandbox import privileges

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
        f"{plan.root_path} on {listen.text()}: {plan.vcpus} vCPU, {plan.memory_mib} MiB,"
        f" libkrun {plan.libraries.origin}, sandbox {'strict' if plan.sandbox else 'off'}",
        libkrun=plan.libraries.libkrun,
        vcpus=plan.vcpus,
        memory_mib=plan.memory_mib,
    )
    port_claim = claims.claim_port(libc, listen)
    overlay_claim: tuple[int, ...] = ()
    if plan.files.overlay is not None:
        from krunclient.sandbox import mounts

        as_user(plan, mounts.prepare_overlay, plan.files.overlay)
        overlay_claim = (claims.claim_overlay(plan.files.overlay),)
    memory.hide_values()
    privileges.forbid_core_dumps(libc)
    log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
    report_reader, report_writer = os.pipe2(os.O_CLOEXEC)
    go_reader, go_writer = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        # Each of the two processes imports what it alone needs, side by side.
        from krunclient import vmm

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


class _Streams:
    """How standard input, output and error were at the start. They are shared with others, and a
    VMM changes them: libkrun the terminal's modes, and one that was killed gives nothing back.
    """

    def __init__(self) -> None:
        self._blocking = [(number, os.get_blocking(number)) for number in (0, 1, 2)]
        self._terminal = next((number for number in (0, 1, 2) if os.isatty(number)), None)
        if self._terminal is not None:
            import termios

            self._modes = termios.tcgetattr(self._terminal)

    def restore(self) -> None:
        for number, blocking in self._blocking:
            os.set_blocking(number, blocking)
        if self._terminal is not None:
            import termios

            termios.tcsetattr(self._terminal, termios.TCSANOW, self._modes)
