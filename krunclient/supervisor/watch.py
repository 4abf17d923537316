"""The life of one VMM child, from its fork to its end, as the supervisor sees it.

    setup ──> booting ──> ready        in each, the app or the VMM can end by itself
      │          │          │
      ├──────────┴──────────┴── a signal asks for a stop ──> stopping
      └──────────┴───────────── an error, a timeout ───────> failed

What happens in the child comes back in four ways: a report, on a pipe of its own; libkrun's log,
on another; the child's calls of bind, connect and listen, which are answered here; and the child's
exit status. Signals that ask for a stop come in as a descriptor too, so that one loop waits for
all of it.
"""

from __future__ import annotations

import os
import select
import time

from krunclient.bindings.libc import SIGINT, SIGKILL, SIGNALFD_RECORD_BYTES
from krunclient.errors import HostError, LaunchError
from krunclient.log import write_all
from krunclient.record import Record
from krunclient.report import Report
from krunclient.supervisor import readiness, usage, verdict
from krunclient.supervisor.announce import Announcer
from krunclient.supervisor.layer import MemoryLayer
from krunclient.supervisor.libkrunlog import LibkrunLog
from krunclient.supervisor.loop import READABLE, Loop
from krunclient.supervisor.mappedport import MappedPort
from krunclient.supervisor.notifications import Notifications, supervision_error
from krunclient.supervisor.sockets import SocketSupervisor
from krunclient.supervisor.stalls import StalledSends
from krunclient.supervisor.verdict import End

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.log import Log
    from krunclient.model import HealthCheck
    from krunclient.plan import Plan
    from krunclient.supervisor.cgroup import Cgroup
    from krunclient.supervisor.children import Child
    from krunclient.supervisor.health import Health
    from krunclient.supervisor.metrics import Metrics
    from krunclient.supervisor.passt import Passt
    from krunclient.supervisor.terminal import Terminal

SETUP = "setup"  # the VMM puts its walls up
BOOTING = "booting"  # libkrun makes the VM, and the guest starts
READY = "ready"  # the mapped port accepts connections
STOPPING = "stopping"  # the app was asked to stop, or the VM is being ended by force
FAILED = "failed"  # the VM is being ended because of an error

ENDING_SECONDS = 5  # for the kernel to free a large guest's memory
EXIT_SECONDS = 0.5  # for the kernel to end a process that has no guest yet
REPEAT_SECONDS = 1.0


class Supervised(Record):
    """What this process holds of a VMM that is behind its walls. `layer` is None if what the guest
    writes is not in memory, `stalls` if libkrun sends nothing to clients.
    """

    sockets: SocketSupervisor
    layer: MemoryLayer | None
    stalls: StalledSends | None


class Launch(Record):
    """What there is when a VMM has been forked."""

    plan: Plan
    libc: Libc
    log: Log
    port: MappedPort
    child: Child
    cgroup: Cgroup | None = None
    terminal: Terminal | None = None
    metrics: Metrics | None = None


def supervise(launch: Launch, listener: int) -> Supervised:
    """`listener` is the number that the child's seccomp listener has there. Raises OSError."""
    plan, libc, child = launch.plan, launch.libc, launch.child
    architecture, in_memory = plan.facts.architecture, plan.config.files.overlay is None
    return Supervised(
        sockets=SocketSupervisor(
            *(libc, architecture, plan.config.policy, launch.port),
            Notifications(libc, child.pid, child.pidfd, listener),
        ),
        layer=MemoryLayer(child.pid) if in_memory else None,
        stalls=None
        if plan.user_network
        else StalledSends(libc, architecture, child.pid, child.pidfd),
    )


def interrupt(launch: Launch) -> None:
    """Have ^C typed on the guest's console: the app gets SIGINT. Raises OSError."""
    if launch.terminal is not None:
        launch.terminal.type_ctrl_c()
    else:
        os.kill(launch.child.pid, SIGINT)  # by libkrun


class Stop:
    """A stop that was asked for by a signal, and whether the VM was then ended by force."""

    def __init__(self, signal: int) -> None:
        self.signal = signal
        self.forced = False
        self._asked = time.monotonic()

    def is_repeated_by(self, signal: int) -> bool:
        """^C reaches the whole process group, and then the manager sends a SIGINT of its own."""
        return signal == self.signal and time.monotonic() - self._asked < REPEAT_SECONDS


class Watch:
    """The phase, and a handler for each thing that can happen in it."""

    def __init__(self, launch: Launch) -> None:
        plan, log = launch.plan, launch.log
        self._launch = launch
        self._announce = Announcer(plan, launch.libc, log, launch.metrics)
        self._loop = Loop()
        self._report = Report()
        self._libkrun_log = LibkrunLog(log, console=plan.config.console)
        self._supervised: Supervised | None = None
        self._phase = SETUP if plan.confinement else BOOTING
        self._stop: Stop | None = None
        self._failure: LaunchError | None = None
        self._health: Health | None = None

    def run(self, signals: int, passt: Passt | None = None) -> End:
        """Watch until the VMM has ended, and end `passt` then. `signals` is a signalfd(2) of what
        asks for a stop.
        """
        for descriptor, handler in (
            (signals, lambda: self._on_signal(signals)),
            (self._launch.child.log, self._on_log),
            (self._launch.child.report, self._on_report),
            (self._launch.child.pidfd, self._loop.stop),
        ):
            os.set_blocking(descriptor, False)
            self._loop.watch(descriptor, READABLE, handler)
        if passt is not None:
            passt.watch(self._loop, self._look_at_port, self._on_passt_failure)
        if self._launch.terminal is not None:
            self._launch.terminal.connect(self._loop, self._launch.child.pid)
        self._announce.begin(self._phase, [self._launch.child.pid, *([passt.pid] if passt else [])])
        self._announce.keep_metrics(self._loop)
        self._start_timers()
        self._loop.run()
        wait_status, used = usage.reap(self._launch.libc, self._launch.child.pid)
        if passt is not None:
            passt.end()
        self._loop.drain(self._launch.child.log, self._libkrun_log.feed)
        self._report.feed(self._loop.read(self._launch.child.report))
        self._report.take_listener()
        layer, cgroup = self._supervised and self._supervised.layer, self._launch.cgroup
        end = End(
            wait_status=wait_status,
            was_set_up=self._supervised is not None or self._launch.plan.confinement is None,
            stop_signal=self._stop.signal if self._stop else None,
            forced=self._stop is not None and self._stop.forced,
            failure=self._failure,
            reported=self._report.error(self._launch.plan.config.files.root_path),
            without_status=self._libkrun_log.without_status,
            cause=(cgroup.reason() if cgroup else "") or self._libkrun_log.reason(),
            lost_mib=layer.written_mib() if layer else None,
        )
        if end.had_a_vm:
            self._announce.ended(end, used)
        return end

    def _start_timers(self) -> None:
        limit = self._launch.plan.config.life.ready_timeout
        if limit is not None:
            error = verdict.not_ready(self._launch.plan, limit)
            self._loop.start_timer("ready", limit, lambda: self._fail(error))
        unsupervised = self._launch.plan.confinement is None
        if unsupervised and (limit is not None or self._announce.is_asked_for_readiness()):
            port = self._launch.plan.config.policy.listen.port
            readiness.when_listening(self._loop, port, self._become_ready)

    # What the child says

    def _on_log(self) -> None:
        self._libkrun_log.feed(self._loop.read(self._launch.child.log))
        if self._libkrun_log.thread_panic and self._failure is None and not self._has_ended():
            self._fail(verdict.thread_panicked(self._launch.plan, self._libkrun_log.thread_panic))

    def _on_report(self) -> None:
        """The child is under its filter and waits to be let go, or it tells why it could not."""
        self._report.feed(self._loop.read(self._launch.child.report))
        if self._report.is_full:
            self._loop.unwatch(self._launch.child.report)
        listener = self._report.take_listener()
        if listener is not None and self._phase == SETUP:
            try:
                self._supervised = supervise(self._launch, listener)
            except OSError as error:
                # A VMM that was killed meanwhile has no descriptors any more, and is about to end.
                if not self._has_ended(EXIT_SECONDS):
                    self._fail(supervision_error("the VMM's", error))
                return
            sockets = self._supervised.sockets
            call, gone = lambda: self._on_call(sockets), self._on_listener_gone
            self._loop.watch(sockets.listener, READABLE, call, gone)
            self._phase = BOOTING  # the timer for readiness goes on
            self._announce.phase(BOOTING)
            self._announce.confined()
            write_all(self._launch.child.go, b"\n")
            os.close(self._launch.child.go)
            self._look_at_port()  # passt can be earlier than the VMM

    def _on_call(self, sockets: SocketSupervisor) -> None:
        """The VMM wants to bind, connect or listen."""
        sockets.answer()
        self._look_at_port()

    def _look_at_port(self) -> None:
        if self._phase == BOOTING and self._launch.port.is_lost:
            self._fail(verdict.port_is_lost(self._launch.plan))
        elif self._phase == BOOTING and self._launch.port.is_listening:
            self._become_ready()

    def _on_passt_failure(self, error: LaunchError) -> None:
        # It ends by itself when the VMM does; but one that never began has ended that.
        is_first = isinstance(error, HostError) or not self._has_ended(EXIT_SECONDS)
        if self._phase != FAILED and is_first:
            self._fail(error)

    def _on_listener_gone(self) -> None:
        """No thread under the filter is left: the VMM is about to end. But one of which only the
        lifeline is left would never do so.
        """
        self._loop.start_timer("ending", ENDING_SECONDS, self._kill)

    def _become_ready(self) -> None:
        self._enter(READY)
        self._announce.ready()
        if self._supervised is not None and self._supervised.stalls is not None:
            self._supervised.stalls.keep_widening(self._loop)
        check = self._launch.plan.config.monitoring.health
        if check is not None:
            from krunclient.supervisor.health import Health

            listen = self._launch.plan.config.policy.listen
            self._health = Health(self._launch.libc, check, listen, self._loop, self._on_health)
            self._health.start()

    def _on_health(self, check: HealthCheck, healthy: bool, why: str) -> None:
        self._announce.health(healthy, why)
        if not healthy and check.ends_vm:
            self._fail(verdict.unhealthy(self._launch.plan, why))

    # The end

    def _on_signal(self, signals: int) -> None:
        # ssi_signo, a uint32_t, is the first field of struct signalfd_siginfo, signalfd(2).
        number = int.from_bytes(os.read(signals, SIGNALFD_RECORD_BYTES)[:4], "little")
        if self._stop is not None:
            if not self._stop.is_repeated_by(number):
                self._force(self._stop, f"signal {number} is the second")
        elif self._phase != FAILED:
            self._ask_to_stop(Stop(number))

    def _ask_to_stop(self, stop: Stop) -> None:
        has_started = self._phase == READY or self._app_has_started()
        self._stop = stop
        self._enter(STOPPING)
        self._announce.stop_requested()
        if not has_started:
            self._force(stop, f"signal {stop.signal} before the app has started")
            return
        grace, why = self._launch.plan.config.life.grace_period, "the grace period is over"
        self._loop.start_timer("grace", grace, lambda: self._force(stop, why))
        self._announce.app_is_asked_to_stop(stop.signal)
        interrupt(self._launch)
        if self._supervised is not None and self._supervised.stalls is not None:
            self._supervised.stalls.keep_releasing(self._loop)

    def _app_has_started(self) -> bool:
        try:
            return readiness.app_has_started(
                self._launch.child.pid, self._launch.plan.facts.exec_path
            )
        except OSError:
            return True  # if /proc can't be read, assume that the app runs

    def _force(self, stop: Stop, why: str) -> None:
        if not stop.forced and not self._has_ended():
            stop.forced = True
            self._announce.forced(why, stop.signal)
            self._kill()

    def _fail(self, error: LaunchError) -> None:
        self._failure = error
        self._enter(FAILED)
        self._kill()

    def _has_ended(self, within: float = 0) -> bool:
        """Whether the VMM has ended by itself, and that has not been looked at yet."""
        return bool(select.select([self._launch.child.pidfd], [], [], within)[0])

    def _kill(self) -> None:
        os.kill(self._launch.child.pid, SIGKILL)

    def _enter(self, phase: str) -> None:
        """What is timed is so for a phase: its timers end with it."""
        self._phase = phase
        self._loop.cancel_timers()
        if self._health is not None:
            self._health.stop()
        self._announce.phase(phase)
        self._announce.keep_metrics(self._loop)
