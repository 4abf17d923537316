"""The supervisor's watch over one VMM child, from its fork to its end.

What happens in the child comes back in four ways: a report, on a pipe of its own; libkrun's log,
on another; the child's calls of bind, connect and listen, which are answered here; and the child's
exit status. Signals that ask for a stop come in as a descriptor too, so that one poll waits for
all of it.
"""

from __future__ import annotations

import os
import select
import time

from krunclient import readiness, report
from krunclient.bindings.libc import SIGINT, SIGKILL, SIGNALFD_RECORD_BYTES
from krunclient.errors import BusyError, HostError, LaunchError, VmError, reason
from krunclient.sandbox import network
from krunclient.vmmlog import VmmLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    import resource
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.claims import PortClaim
    from krunclient.log import Log
    from krunclient.plan import Plan

PIPE_READ_BYTES = 65536
MAX_PIPE_BYTES = 2**20  # of a user that is not root, pipe(7)
MAX_REPORT_BYTES = 8192
ENDING_SECONDS = 5  # for the kernel to free a large guest's memory
# Without a sandbox nobody tells that the guest listens: the host's table of sockets is read.
LISTENING_CHECK_SECONDS = 0.05


class Stop:
    """A stop that was asked for: by which signal, until when the app may take to end by itself,
    and whether the VM was ended by force. Times are those of time.monotonic().
    """

    def __init__(self, number: int, deadline: float) -> None:
        self.number = number
        self.deadline = deadline
        self.forced = False


class Ended:
    """How the child ended: its wait status, the stop that was asked for, and what it has used."""

    def __init__(self, wait_status: int, stop: Stop | None, used: resource.struct_rusage) -> None:
        self.wait_status = wait_status
        self.stop = stop
        self.used = used

    @property
    def forced(self) -> bool:
        return self.stop is not None and self.stop.forced

    def app_status(self, vmm_log: VmmLog) -> int | None:
        """The status that the app ended with, where it did."""
        if self.forced or os.WIFSIGNALED(self.wait_status) or vmm_log.without_status:
            return None
        return os.WEXITSTATUS(self.wait_status)

    def how(self, vmm_log: VmmLog) -> str:
        if self.forced:
            return "the VM was ended by force"
        if os.WIFSIGNALED(self.wait_status):
            return f"the VMM was killed by signal {os.WTERMSIG(self.wait_status)}"
        if vmm_log.without_status:
            return "the guest stopped without the app's status"
        return f"the app ended with status {os.WEXITSTATUS(self.wait_status)}"

    def status(self, vmm_log: VmmLog, root_path: str) -> int:
        """krunclient's exit status. Raises VmError where the app had none."""
        if self.stop is not None and (self.forced or os.WIFSIGNALED(self.wait_status)):
            return 128 + self.stop.number
        app_status = self.app_status(vmm_log)
        if app_status is None:
            raise VmError(
                "the VM has ended",
                root_path,
                f"{self.how(vmm_log)}{vmm_log.reason()}",
                "--console shows libkrun's own log and the guest's kernel log",
            )
        return app_status


class Watch:
    """A handler for each descriptor that can be ready, and the times that something is due at."""

    def __init__(
        self,
        plan: Plan,
        libc: Libc,
        log: Log,
        port_claim: PortClaim,
        child: int,
        signals: int,
        log_reader: int,
        report_reader: int,
        go_writer: int,
    ) -> None:
        self._plan = plan
        self._libc = libc
        self._log = log
        self._port_claim = port_claim
        self._child = child
        self._process = os.pidfd_open(child)
        self._signals = signals
        self._log_reader = log_reader
        self._report_reader = report_reader
        self._go_writer = go_writer
        self._vmm_log = VmmLog(log, console=plan.console)
        self._report = b""
        self._warden: network.Warden | None = None
        self._failure: LaunchError | None = None
        self._ended: Ended | None = None
        self._stop: Stop | None = None
        self._ready = False
        # Without a sandbox it takes a look at the host's sockets, now and again.
        self._wants_readiness = (
            plan.sandbox
            or bool(plan.notify_socket)
            or plan.ready_timeout is not None
            or log.writes("info")
        )
        self._started = time.monotonic()
        self._must_end_by: float | None = None
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
        """Returns krunclient's exit status. Raises LaunchError where there is none."""
        while self._ended is None:
            for descriptor, events in self._poll.poll(self._patience()):
                if not events & select.POLLIN:
                    self._on_hang_up(descriptor)
                elif descriptor in self._handlers:
                    self._handlers[descriptor]()
            self._check_readiness()
            self._check_deadlines()
        # What was written before the end is still in the pipes, as much as they hold.
        for _ in range(MAX_PIPE_BYTES // PIPE_READ_BYTES):
            self._on_log()
        self._on_report()
        if not self._ended.forced:
            if self._failure is not None:
                if self._warden is not None:
                    self._record_the_end(self._ended)
                raise self._failure
            if self._report:
                raise report.read(self._report, self._plan.root_path)
            if self._plan.sandbox and self._warden is None and self._stop is None:
                raise VmError(
                    "the VM could not be created",
                    self._plan.root_path,
                    "the VMM ended before it was set up",
                    "see which limit has been reached, by ulimit -a and the kernel's log",
                )
        self._record_the_end(self._ended)
        return self._ended.status(self._vmm_log, self._plan.root_path)

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def _on_hang_up(self, descriptor: int) -> None:
        """The other end is gone, for good. Where that is the seccomp listener's, the VMM is about
        to end; but one of which only the lifeline is left would never do so.
        """
        self._unwatch(descriptor)
        if self._warden is not None and descriptor == self._warden.listener:
            self._must_end_by = time.monotonic() + ENDING_SECONDS

    def _read(self, descriptor: int) -> bytes:
        """Some of what is there to be read; at the end of a pipe it is watched no more."""
        try:
            data = os.read(descriptor, PIPE_READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._unwatch(descriptor)
        return data

    # Stops

    def _on_signal(self) -> None:
        # ssi_signo, a uint32_t, is the first field of struct signalfd_siginfo, signalfd(2).
        number = int.from_bytes(os.read(self._signals, SIGNALFD_RECORD_BYTES)[:4], "little")
        if self._stop is not None:
            self._end_by_force(self._stop, f"signal {number} is the second")
            return
        self._stop = Stop(number, time.monotonic() + self._plan.grace_period)
        self._notify(b"STOPPING=1")
        if not self._ready and not self._app_has_started():
            self._end_by_force(self._stop, f"signal {number} before the app has started")
            return
        self._log.write(
            "info",
            "stopping",
            f"signal {number}: the app is asked to stop, and has {self._plan.grace_period:g} s",
            signal=number,
        )
        # libkrun types ^C on the guest's console: the app gets SIGINT.
        os.kill(self._child, SIGINT)

    def _app_has_started(self) -> bool:
        try:
            return readiness.app_has_started(self._child, self._plan.exec_path)
        except OSError:
            return True  # who can't be seen is asked

    def _end_by_force(self, stop: Stop, why: str) -> None:
        # It may have ended by itself, and that has not been looked at yet.
        if not stop.forced and not select.select([self._process], [], [], 0)[0]:
            stop.forced = True
            self._log.write("info", "forced", f"the VM is ended: {why}", signal=stop.number)
            os.kill(self._child, SIGKILL)

    # Times

    def _patience(self) -> float | None:
        """How many milliseconds to wait for a descriptor; None is without end."""
        now = time.monotonic()
        times = []
        if self._must_end_by is not None:
            times.append(self._must_end_by - now)
        if self._stop is not None:
            if not self._stop.forced and self._failure is None:
                times.append(self._stop.deadline - now)
        elif not self._ready and self._failure is None:
            if self._plan.ready_timeout is not None:
                times.append(self._started + self._plan.ready_timeout - now)
            if self._wants_readiness and not self._plan.sandbox:
                times.append(LISTENING_CHECK_SECONDS)
        return max(0, min(times) * 1000 + 1) if times else None

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._ended is not None:
            return
        if self._must_end_by is not None and now >= self._must_end_by:
            self._must_end_by = None
            os.kill(self._child, SIGKILL)
        if self._failure is not None:
            return
        if self._stop is not None:
            if now >= self._stop.deadline:
                self._end_by_force(self._stop, "the grace period is over")
            return
        limit = self._plan.ready_timeout
        if limit is not None and not self._ready and now >= self._started + limit:
            self._fail(
                VmError(
                    "the app is not ready",
                    self._plan.root_path,
                    f"it does not listen on port {self._plan.guest_port} after {limit:g} s",
                    "see what it prints, or give it more time by --ready-timeout",
                )
            )

    def _check_readiness(self) -> None:
        if self._ready or self._stop is not None or self._failure is not None:
            return
        if not self._wants_readiness:
            return
        listen = self._plan.policy.listen
        if self._warden is not None and self._warden.port_is_lost:
            why = "another program has taken it"
            self._fail(BusyError("LOCAL_PORT can't be used", listen.text(), why, "try again"))
            return
        if self._plan.sandbox:
            self._ready = self._warden is not None and self._warden.listening
        else:
            self._ready = readiness.is_listening(listen.port)
        if self._ready:
            elapsed = readiness.milliseconds_since_start()
            self._log.write(
                "info",
                "ready",
                f"{listen.text()} accepts connections after {elapsed} ms",
                milliseconds=elapsed,
            )
            self._notify(b"READY=1")

    def _notify(self, state: bytes) -> None:
        where = self._plan.notify_socket
        if not where:
            return
        try:
            readiness.notify(self._libc, where, state)
        except OSError as error:
            text = f"{state.decode()} can't be sent to NOTIFY_SOCKET: {reason(error)}"
            self._log.write("warning", "notify", text)

    # What the child says

    def _on_log(self) -> None:
        self._vmm_log.feed(self._read(self._log_reader))

    def _on_report(self) -> None:
        """The child is under its filter and waits to be let go, or it tells why it could not."""
        self._report += self._read(self._report_reader)
        if len(self._report) > MAX_REPORT_BYTES:
            self._report = self._report[:MAX_REPORT_BYTES]
            self._unwatch(self._report_reader)
        message, newline, rest = self._report.partition(b"\n")
        if newline and message.startswith(report.LISTENER) and self._go_writer >= 0:
            self._report = rest
            try:
                self._guard(int(message[len(report.LISTENER) :]))
            except OSError as error:
                self._fail(_supervision_error(error))

    def _guard(self, number: int) -> None:
        """Take the seccomp listener out of the child, and let it go. Raises OSError."""
        listener = self._libc.pidfd_getfd(self._process, number, 0)
        self._warden = network.Warden(
            self._libc,
            self._plan.policy,
            self._plan.machine,
            self._port_claim,
            self._child,
            self._process,
            listener,
        )
        self._watch(listener, self._warden.answer)
        self._log.write("debug", "confined", "the VMM is behind its walls, and makes the VM")
        os.write(self._go_writer, b"\n")
        os.close(self._go_writer)
        self._go_writer = -1

    def _fail(self, error: LaunchError) -> None:
        self._failure = error
        os.kill(self._child, SIGKILL)

    def _on_end(self) -> None:
        _, wait_status, used = os.wait4(self._child, 0)
        self._ended = Ended(wait_status, self._stop, used)

    def _record_the_end(self, ended: Ended) -> None:
        seconds = time.monotonic() - self._started
        processor = ended.used.ru_utime + ended.used.ru_stime
        peak_mib = ended.used.ru_maxrss // 1024
        how = ended.how(self._vmm_log)
        self._log.write(
            "info",
            "ended",
            f"{how} after {seconds:.1f} s; {processor:.1f} s of processor"
            f" time, {peak_mib} MiB of memory at most",
            how=how,
            app_status=ended.app_status(self._vmm_log),
            stopped_by=ended.stop.number if ended.stop else None,
            forced=ended.forced,
            seconds=round(seconds, 3),
            processor_seconds=round(processor, 3),
            peak_memory_mib=peak_mib,
        )


def _supervision_error(error: OSError) -> HostError:
    return HostError(
        "the sandbox can't be made",
        "supervision of the VMM's sockets",
        reason(error),
        "allow ptrace of a process's own children: sysctl kernel.yama.ptrace_scope=1 or less",
    )
