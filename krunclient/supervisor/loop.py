"""Waits for descriptors and for timers, and calls the handler of each that is due."""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[], None]

PIPE_READ_BYTES = 65536
MAX_PIPE_BYTES = 2**20  # of a user that is not root, pipe(7)
READABLE, WRITABLE = select.POLLIN, select.POLLOUT


class Loop:
    """One thread, no nesting: handlers are called one after the other and must not wait.

    A handler may watch and unwatch descriptors, start and cancel timers, and stop the loop.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, tuple[int, Handler, Handler | None]] = {}
        self._timers: dict[str, tuple[float, Handler]] = {}
        self._stopped = False

    def watch(
        self, descriptor: int, events: int, ready: Handler, gone: Handler | None = None
    ) -> None:
        """Call `ready` whenever one of these events is there, poll(2). Watching a descriptor again
        replaces its events and handlers.

        If the other end has hung up and no event is there, the descriptor is unwatched, and `gone`
        is called.
        """
        self._handlers[descriptor] = (events, ready, gone)
        self._poll.register(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """It may have been unwatched already."""
        if self._handlers.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def read(self, descriptor: int) -> bytes:
        """Some of what is there to be read; at the end of a pipe it is unwatched."""
        try:
            data = os.read(descriptor, PIPE_READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self.unwatch(descriptor)
        return data

    def drain(self, descriptor: int, feed: Callable[[bytes], None]) -> None:
        """Feed what a process that has ended left in its pipe, as much as that holds."""
        for _ in range(MAX_PIPE_BYTES // PIPE_READ_BYTES):
            data = self.read(descriptor)
            if not data:
                break
            feed(data)

    def start_timer(self, name: str, seconds: float, due: Handler) -> None:
        """Call `due` once, after so many seconds. A timer of the same name is replaced."""
        self._timers[name] = (time.monotonic() + seconds, due)

    def cancel_timer(self, name: str) -> None:
        """It may not have been started, or be over."""
        self._timers.pop(name, None)

    def cancel_timers(self) -> None:
        """All of them."""
        self._timers.clear()

    def stop(self) -> None:
        """Return from `run` when the handler that calls this has returned."""
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            for descriptor, events in self._poll.poll(self._milliseconds_to_wait()):
                self._call_handler(descriptor, events)
                if self._stopped:
                    return
            self._call_timers()

    def _call_handler(self, descriptor: int, events: int) -> None:
        # A handler that was called before this one may have unwatched the descriptor.
        wanted, ready, gone = self._handlers.get(descriptor, (0, None, None))
        if ready and events & wanted:
            ready()
        elif ready:
            self.unwatch(descriptor)
            if gone:
                gone()

    def _milliseconds_to_wait(self) -> float | None:
        """None is without end."""
        if not self._timers:
            return None
        nearest = min(deadline for deadline, _ in self._timers.values())
        # poll(2) counts whole milliseconds: one more, so that the timer is due then.
        return max(0, (nearest - time.monotonic()) * 1000 + 1)

    def _call_timers(self) -> None:
        now = time.monotonic()
        for name, (deadline, due) in sorted(self._timers.items(), key=lambda timer: timer[1][0]):
            # A handler may have cancelled it, or started it anew.
            if self._stopped or now < deadline or self._timers.get(name) != (deadline, due):
                continue
            del self._timers[name]
            due()
