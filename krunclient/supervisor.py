"""The process that was exec'd: forks the VMM child, watches it, and ends with a true status.

It never loads libkrun. What happens in the child comes back in three ways: an error that the
child found, on a pipe of its own; libkrun's log, on another; and the child's exit status.
"""

from __future__ import annotations

import os
import select

from krunclient import vm
from krunclient.bindings.libc import (
    PR_SET_PDEATHSIG,
    SFD_NONBLOCK_CLOEXEC,
    SIG_BLOCK,
    SIG_DFL,
    SIG_SETMASK,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGNALFD_RECORD_BYTES,
    SIGQUIT,
    SIGTERM,
    SignalSet,
)
from krunclient.errors import ERRORS_BY_STATUS, LaunchError, VmError
from krunclient.log import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.log import Log
    from krunclient.plan import Plan

STOP_SIGNALS = (SIGHUP, SIGINT, SIGQUIT, SIGTERM)
PIPE_READ_BYTES = 65536
MAX_LINE_BYTES = 8192


def run(plan: Plan, libc: Libc, log: Log) -> int:
    """Run the VM to its end. Returns krunclient's exit status.

    Raises LaunchError for what the child could not set up, VmError where the VM ended without
    the app's status.
    """
    # Blocked signals are queued even when they were ignored at the start, as under nohup.
    stop_signals = SignalSet.of(*STOP_SIGNALS)
    libc.sigprocmask(SIG_BLOCK, stop_signals, None)
    signals = libc.signalfd(-1, stop_signals, SFD_NONBLOCK_CLOEXEC)
    log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
    report_reader, report_writer = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        _vmm_child(plan, libc, supervisor, log_writer, report_writer)
    os.close(log_writer)
    os.close(report_writer)
    log.info(f"VMM started: pid {child}, {plan.root_path} on port {plan.host_port}")
    terminal = _Terminal()
    try:
        vmm_log = VmmLog(passed_through=plan.console)
        ended = _watch(child, signals, log_reader, vmm_log)
    finally:
        terminal.restore()
    report = _read_all(report_reader)
    if report:
        raise _error_from(report)
    return _status(ended, vmm_log, plan)


class Ended:
    """How the child ended: its wait status, and the signal that asked for it, if any."""

    def __init__(self, wait_status: int, stopped_by: int | None) -> None:
        self.wait_status = wait_status
        self.stopped_by = stopped_by


def _watch(child: int, signals: int, log_reader: int, vmm_log: VmmLog) -> Ended:
    stopped_by = None
    process = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (process, signals, log_reader):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if signals in ready:
            stopped_by = stopped_by or _next_signal(signals)
            os.kill(child, SIGKILL)
        if log_reader in ready:
            data = os.read(log_reader, PIPE_READ_BYTES)
            vmm_log.feed(data)
            if not data:
                poll.unregister(log_reader)
        if process in ready:
            _, wait_status = os.waitpid(child, 0)
            vmm_log.feed(_read_all(log_reader))
            os.close(process)
            return Ended(wait_status, stopped_by)


def _next_signal(signals: int) -> int:
    # ssi_signo, a uint32_t, is the first field of struct signalfd_siginfo, signalfd(2).
    return int.from_bytes(os.read(signals, SIGNALFD_RECORD_BYTES)[:4], "little")


def _read_all(descriptor: int) -> bytes:
    """Read to the end of a pipe whose writers are gone."""
    chunks = []
    while chunk := os.read(descriptor, PIPE_READ_BYTES):
        chunks.append(chunk)
    return b"".join(chunks)


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


# The child's descriptors beside 0, 1 and 2, which become the guest's.
LOG_DESCRIPTOR = 3
REPORT_DESCRIPTOR = 4


def _vmm_child(
    plan: Plan, libc: Libc, supervisor: int, log_writer: int, report_writer: int
) -> None:
    """Never returns. An error goes to the supervisor, which alone speaks to the user."""
    try:
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(70)  # it died before the line above; nobody is left to be told
        # A terminal's ^C is for the supervisor, which decides what the guest hears of it.
        os.setsid()
        _move_descriptors(log_writer, report_writer)
        for number in STOP_SIGNALS:
            libc.signal(number, SIG_DFL)
        libc.sigprocmask(SIG_SETMASK, SignalSet(), None)
        vm.start(plan, libc, LOG_DESCRIPTOR)
    except LaunchError as error:
        _report(error)
    except BaseException as error:
        _report(
            VmError(
                "the VM could not be created",
                plan.root_path,
                f"{type(error).__name__}: {error}" if isinstance(error, OSError) else repr(error),
                "this is a fault of krunclient or of libkrun: please report it",
            )
        )
    finally:
        os._exit(70)


def _move_descriptors(log_writer: int, report_writer: int) -> None:
    """Leave the child 0 to 4 and nothing else."""
    high = max(log_writer, report_writer, REPORT_DESCRIPTOR) + 1
    os.dup2(log_writer, high, inheritable=False)
    os.dup2(report_writer, high + 1, inheritable=False)
    os.dup2(high, LOG_DESCRIPTOR, inheritable=False)
    os.dup2(high + 1, REPORT_DESCRIPTOR, inheritable=False)
    os.closerange(REPORT_DESCRIPTOR + 1, os.sysconf("SC_OPEN_MAX"))


def _report(error: LaunchError) -> None:
    fields = (str(error.status), error.what, error.thing, error.why, error.remedy)
    write_all(REPORT_DESCRIPTOR, "\0".join(fields).encode("utf-8", "surrogateescape"))


def _error_from(report: bytes) -> LaunchError:
    status, *fields = report.decode("utf-8", "surrogateescape").split("\0")
    what, thing, why, remedy = fields
    return ERRORS_BY_STATUS[int(status)](what, thing, why, remedy)
