"""The process that was exec'd: forks the VMM child, watches it, and ends with a true status.

It never loads libkrun. What happens in the child comes back in four ways: a report, on a pipe of
its own; libkrun's log, on another; the child's calls of bind and connect, which are answered here;
and the child's exit status.
"""

from __future__ import annotations

import os
import select

from krunclient import claims, memory, vmm
from krunclient.bindings.libc import (
    PR_SET_DUMPABLE,
    SFD_NONBLOCK_CLOEXEC,
    SIG_BLOCK,
    SIGKILL,
    SIGNALFD_RECORD_BYTES,
    SignalSet,
)
from krunclient.errors import HostError, LaunchError, VmError, reason
from krunclient.log import write_all
from krunclient.sandbox import mounts, network, privileges
from krunclient.vmm import STOP_SIGNALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.log import Log
    from krunclient.plan import Plan

PIPE_READ_BYTES = 65536
MAX_READ_BYTES = 2**20
MAX_REPORT_BYTES = 8192
MAX_LINE_BYTES = 8192


def run(plan: Plan, libc: Libc, log: Log) -> int:
    """Run the VM to its end. Returns krunclient's exit status.

    Raises LaunchError for what could not be claimed or set up, VmError where the VM ended without
    the app's status.
    """
    claimed = claims.claim_port(libc, plan.policy.listen)
    if plan.files.overlay is not None:
        as_user(plan, mounts.prepare_overlay, plan.files.overlay)
        claimed += (claims.claim_overlay(plan.files.overlay),)
    memory.hide_values()
    privileges.forbid_core_dumps(libc)
    # Blocked signals are queued even when they were ignored at the start, as under nohup.
    stop_signals = SignalSet.of(*STOP_SIGNALS)
    libc.sigprocmask(SIG_BLOCK, stop_signals, None)
    signals = libc.signalfd(-1, stop_signals, SFD_NONBLOCK_CLOEXEC)
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
    log.info(f"VMM started: pid {child}, {plan.root_path} on {plan.policy.listen.text()}")
    terminal = _Terminal()
    try:
        return _Watch(plan, libc, child, signals, log_reader, report_reader, go_writer).run()
    finally:
        terminal.restore()


class Ended:
    """How the child ended: its wait status, and the signal that asked for it, if any."""

    def __init__(self, wait_status: int, stopped_by: int | None) -> None:
        self.wait_status = wait_status
        self.stopped_by = stopped_by


class _Watch:
    """One VMM child, from its fork to its end: a handler for each descriptor that can be ready."""

    def __init__(
        self,
        plan: Plan,
        libc: Libc,
        child: int,
        signals: int,
        log_reader: int,
        report_reader: int,
        go_writer: int,
    ) -> None:
        self._plan = plan
        self._libc = libc
        self._child = child
        self._process = os.pidfd_open(child)
        self._signals = signals
        self._log_reader = log_reader
        self._report_reader = report_reader
        self._go_writer = go_writer
        self._vmm_log = VmmLog(passed_through=plan.console)
        self._report = b""
        self._supervised = False
        self._failure: LaunchError | None = None
        self._ended: Ended | None = None
        self._stopped_by: int | None = None
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        for descriptor, handler in (
            (signals, self._on_signal),
            (log_reader, self._on_log),
            (report_reader, self._on_report),
            (self._process, self._on_end),
        ):
            os.set_blocking(descriptor, False)
            self._watch(descriptor, handler)

    def run(self) -> int:
        while self._ended is None:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._handlers:
                    self._handlers[descriptor]()
        # What was written before the end is still in the pipes.
        self._on_log()
        self._on_report()
        if self._ended.stopped_by is None:
            if self._failure is not None:
                raise self._failure
            if self._report:
                raise vmm.error_from(self._report, self._plan.root_path)
        return _status(self._ended, self._vmm_log, self._plan)

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def _read(self, descriptor: int) -> bytes:
        """What is there to be read; at the end of a pipe it is watched no more."""
        chunks = []
        try:
            while chunk := os.read(descriptor, PIPE_READ_BYTES):
                chunks.append(chunk)
                if sum(map(len, chunks)) > MAX_READ_BYTES:
                    return b"".join(chunks)
            self._unwatch(descriptor)
        except BlockingIOError:
            pass
        return b"".join(chunks)

    def _on_signal(self) -> None:
        # ssi_signo, a uint32_t, is the first field of struct signalfd_siginfo, signalfd(2).
        record = os.read(self._signals, SIGNALFD_RECORD_BYTES)
        self._stopped_by = self._stopped_by or int.from_bytes(record[:4], "little")
        os.kill(self._child, SIGKILL)

    def _on_log(self) -> None:
        self._vmm_log.feed(self._read(self._log_reader))

    def _on_report(self) -> None:
        """The child is under its filter and waits to be let go, or it tells why it could not."""
        self._report += self._read(self._report_reader)
        if len(self._report) > MAX_REPORT_BYTES:
            self._report = self._report[:MAX_REPORT_BYTES]
            self._unwatch(self._report_reader)
        message, newline, rest = self._report.partition(b"\n")
        if newline and message.startswith(vmm.LISTENER) and not self._supervised:
            self._supervised = True
            self._report = rest
            try:
                self._guard(int(message[len(vmm.LISTENER) :]))
            except OSError as error:
                self._failure = _supervision_error(error)
                os.kill(self._child, SIGKILL)

    def _guard(self, number: int) -> None:
        """Take the seccomp listener out of the child, and let it go. Raises OSError."""
        listener = self._libc.pidfd_getfd(self._process, number, 0)
        warden = network.Warden(
            self._libc,
            self._plan.policy,
            self._plan.machine,
            self._child,
            self._process,
            listener,
        )
        self._watch(listener, warden.answer)
        os.write(self._go_writer, b"\n")

    def _on_end(self) -> None:
        _, wait_status = os.waitpid(self._child, 0)
        self._ended = Ended(wait_status, self._stopped_by)


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


def _supervision_error(error: OSError) -> HostError:
    return HostError(
        "the sandbox can't be made",
        "supervision of the VMM's sockets",
        reason(error),
        "allow ptrace of a process's own children: sysctl kernel.yama.ptrace_scope=1 or less",
    )


def _status(ended: Ended, vmm_log: VmmLog, plan: Plan) -> int:
    if ended.stopped_by is not None:
        return 128 + ended.stopped_by
    if os.WIFSIGNALED(ended.wait_status):
        raise VmError(
            "the VM has ended",
            plan.root_path,
            f"the VMM was killed by signal {os.WTERMSIG(ended.wait_status)}{vmm_log.reason()}",
            "--console shows libkrun's own log",
        )
    if vmm_log.without_status:
        raise VmError(
            "the VM has ended",
            plan.root_path,
            f"the guest stopped without the app's status{vmm_log.reason()}",
            "--console shows the guest's kernel log",
        )
    return os.WEXITSTATUS(ended.wait_status)


class VmmLog:
    """libkrun's log, read line by line, for the two things that it alone tells.

    A guest that ends without having reported a status (a kernel panic, a reset) makes libkrun
    exit with 0. That the status is nobody's is only in its log, at debug level: "using vcpu exit
    code" in place of "using vmm exit code" (src/vmm/src/lib.rs, 1.10 to 2.x). And what the guest's
    kernel prints on its console comes as errors of libkrun's console port.
    """

    def __init__(self, *, passed_through: bool) -> None:
        self.without_status = False
        self._passed_through = passed_through
        self._incomplete = b""
        self._last_error = ""
        self._panic = ""

    def feed(self, data: bytes) -> None:
        lines = (self._incomplete + data).split(b"\n")
        self._incomplete = lines.pop()[-MAX_LINE_BYTES:]
        for line in lines:
            self._line(line)

    def reason(self) -> str:
        """The likely cause, to be put behind a sentence; empty where nothing is known."""
        cause = self._panic or self._last_error
        return f" ({cause})" if cause else ""

    def _line(self, line: bytes) -> None:
        if self._passed_through:
            write_all(2, line + b"\n")
        head, _, message = line.decode("utf-8", "replace").partition("] ")
        level, _, target = head.partition(" ")[2].strip().partition(" ")
        if level == "DEBUG" and target.strip() in ("vmm", "krun_vmm"):
            if message.startswith("using vcpu exit code"):
                self.without_status = True
            elif message.startswith("using vmm exit code"):
                self.without_status = False
        elif level == "ERROR" and message.strip():
            self._last_error = message.strip()[:200]
            if "Kernel panic" in message and not self._panic:
                self._panic = self._last_error


class _Terminal:
    """The terminal's settings at the start: libkrun sets it to raw mode, and a VMM that is
    killed can't set it back.
    """

    def __init__(self) -> None:
        self._saved = None
        if os.isatty(0):
            import termios

            self._saved = termios.tcgetattr(0)

    def restore(self) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
