"""Writes the events of a VM's life to the log, and tells a service manager."""

from __future__ import annotations

import errno
import os
import time

from krunclient import log as events
from krunclient.bindings.libc import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK
from krunclient.errors import reason
from krunclient.supervisor import presence, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunclient.bindings.libc import Libc
    from krunclient.log import Event, Log
    from krunclient.plan import Plan
    from krunclient.supervisor.loop import Loop
    from krunclient.supervisor.metrics import Metrics
    from krunclient.supervisor.usage import Usage
    from krunclient.supervisor.verdict import End


KEPT_BY = "--volume, --overlay or --state-dir keeps it"
MAX_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path without its NUL, unix(7)


class Announcer:
    """One method an event."""

    def __init__(self, plan: Plan, libc: Libc, log: Log, metrics: Metrics | None) -> None:
        self._plan = plan
        self._libc = libc
        self._log = log
        self._started = time.monotonic()
        self._phase = ""
        self._healthy: bool | None = None
        self._metrics = metrics
        self._failing: set[str] = set()  # what could not be told, and has been complained of

    def is_asked_for_readiness(self) -> bool:
        """Whether anybody would hear of it."""
        return bool(self._plan.config.monitoring.notify_socket) or self._log.writes(events.READY)

    def begin(self, phase: str, children: Sequence[int]) -> None:
        """Tell the first phase, and measure this process and its children from now on."""
        if self._metrics is not None:
            self._metrics.measure((os.getpid(), *children))
        self.phase(phase)

    def phase(self, phase: str) -> None:
        self._phase, self._healthy = phase, None
        presence.show_phase(self._libc, phase)
        self._write_metrics()

    def keep_metrics(self, loop: Loop) -> None:
        """From now on, as long as the phase lasts, measure every few seconds."""
        if self._metrics is not None:
            seconds = self._metrics.SECONDS
            loop.start_timer("metrics", seconds, lambda: self._measure_again(loop))

    def _measure_again(self, loop: Loop) -> None:
        self._write_metrics()
        self.keep_metrics(loop)

    def _write_metrics(self) -> None:
        if self._metrics is None:
            return
        try:
            self._metrics.write(self._phase, healthy=self._healthy)
            self._failing.discard("metrics")
        except OSError as error:
            path = self._plan.config.monitoring.metrics
            self._complain("metrics", events.METRICS, f"{path} can't be written: {reason(error)}")

    def confined(self) -> None:
        self._log.write(events.CONFINED, "the VMM is behind its walls, and makes the VM")

    def ready(self) -> None:
        elapsed = round(usage.seconds_since_start("self") * 1000)
        listen = self._plan.config.policy.listen.text()
        text = f"{listen} accepts connections after {elapsed} ms"
        self._log.write(events.READY, text, milliseconds=elapsed)
        self._notify(b"READY=1")

    def health(self, healthy: bool, why: str) -> None:
        """Told after each answer that counts; only a change is news, but for a watchdog."""
        if healthy:
            self._notify(b"WATCHDOG=1")
        if healthy == self._healthy:
            return
        self._healthy = healthy
        word = "healthy" if healthy else "unhealthy"
        presence.show_phase(self._libc, word)
        self._write_metrics()
        if healthy:
            self._log.write(events.HEALTHY, "the app is healthy")
        else:
            self._log.write(events.UNHEALTHY, f"the app is unhealthy: {why}", why=why)
        self._notify(f"STATUS={word}{': ' if why else ''}{why}".encode())

    def stop_requested(self) -> None:
        self._notify(b"STOPPING=1")

    def app_is_asked_to_stop(self, signal: int) -> None:
        grace = self._plan.config.life.grace_period
        text = f"signal {signal}: the app is asked to stop, and has {grace:g} s"
        self._log.write(events.STOPPING, text, signal=signal)

    def forced(self, why: str, signal: int) -> None:
        self._log.write(events.FORCED, f"the VM is ended: {why}", signal=signal)

    def ended(self, end: End, used: Usage) -> None:
        """`used` has the VMM's memory at its peak."""
        seconds = time.monotonic() - self._started
        processor = used.processor_seconds
        peak_mib = used.resident_bytes // 2**20
        lost = f"; what it wrote is lost, {end.lost_mib:g} MiB: {KEPT_BY}" if end.lost_mib else ""
        self._log.write(
            events.ENDED,
            f"{end.how} after {seconds:.1f} s; {processor:.1f} s of processor"
            f" time, {peak_mib} MiB of memory at most{lost}",
            how=end.how,
            app_status=end.app_status,
            stopped_by=end.stop_signal,
            forced=end.forced,
            seconds=round(seconds, 3),
            processor_seconds=round(processor, 3),
            peak_memory_mib=peak_mib,
            lost_mib=end.lost_mib,
        )

    def _notify(self, state: bytes) -> None:
        where = self._plan.config.monitoring.notify_socket
        if not where:
            return
        text = state.decode()
        try:
            notify(self._libc, where, state)
            self._failing.discard(text)
        except OSError as error:
            why = f"{text} can't be sent to NOTIFY_SOCKET: {reason(error)}"
            self._complain(text, events.NOTIFY, why)

    def _complain(self, what: str, event: Event, text: str) -> None:
        """Once, until it has worked again."""
        if what not in self._failing:
            self._log.write(event, text)
        self._failing.add(what)


def notify(libc: Libc, where: str, state: bytes) -> None:
    """sd_notify(3). `where` is a path, or a name that begins with `@`. Raises OSError."""
    name = os.fsencode(where)
    if len(name) > MAX_UNIX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if name.startswith(b"@"):
        name = b"\0" + name[1:]
    sockaddr = AF_UNIX.to_bytes(2, "little") + name
    descriptor = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    try:
        libc.connect(descriptor, sockaddr, len(sockaddr))
        os.write(descriptor, state)
    finally:
        os.close(descriptor)
