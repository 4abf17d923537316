"""--health-path: asks the app by HTTP, through the mapped port, whether it is well.

Whatever the guest answers, nothing here waits for it, and no more of it is kept than a first line.
"""

from __future__ import annotations

import os
import re
import time

from krunclient.bindings.libc import SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM
from krunclient.errors import reason
from krunclient.supervisor.loop import PIPE_READ_BYTES, READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.model import Endpoint, HealthCheck
    from krunclient.supervisor.loop import Loop

MAX_ANSWER_BYTES = 2**20
HEAD_BYTES = 13
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]")  # RFC 9112
WELL = range(200, 400)


class Health:
    """Asks at once and then once an interval. `told` hears after each answer whether the app is
    healthy, and why not: after the first good answer it is, after so many bad ones in a row it is
    not, and in between it is what it was.
    """

    def __init__(
        self,
        libc: Libc,
        check: HealthCheck,
        where: Endpoint,
        loop: Loop,
        told: Callable[[HealthCheck, bool, str], None],
    ) -> None:
        self._libc = libc
        self._check = check
        self._where = where
        self._loop = loop
        self._told = told
        self._failures = 0
        self._socket: int | None = None
        self._head = b""
        self._received = 0
        self._began = 0.0

    def start(self) -> None:
        """The timers end with the phase that they were started in; `stop` ends the rest."""
        self._began = time.monotonic()
        self._loop.start_timer("health-timeout", self._check.timeout, self._on_timeout)
        self._head, self._received = b"", 0
        flags = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK
        try:
            self._socket = socket = self._libc.socket(self._where.family, flags, 0)
            self._connect(socket)
        except OSError as error:
            self._bad(reason(error))
        else:
            self._loop.watch(socket, WRITABLE, self._send, self._read)

    def _connect(self, socket: int) -> None:
        """Raises OSError. That it goes on is no error."""
        sockaddr = self._where.sockaddr(self._where.family)
        try:
            self._libc.connect(socket, sockaddr, len(sockaddr))
        except BlockingIOError:
            pass

    def stop(self) -> None:
        """Ask no further. What is not answered yet is left."""
        self._loop.cancel_timer("health-timeout")
        if self._socket is not None:
            self._loop.unwatch(self._socket)
            os.close(self._socket)
            self._socket = None

    def _send(self) -> None:
        assert self._socket is not None
        # By HTTP/1.0 the end of an answer is that of the connection.
        request = f"GET {self._check.path} HTTP/1.0\r\nHost: {self._where.text()}\r\n\r\n"
        try:
            os.write(self._socket, request.encode())
        except OSError as error:
            self._bad(reason(error))
            return
        self._loop.watch(self._socket, READABLE, self._read, self._read)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = os.read(self._socket, PIPE_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._bad(reason(error))
            return
        self._received += len(data)
        self._head = (self._head + data)[:HEAD_BYTES]
        found = STATUS_LINE.match(self._head)
        if found is None and (not data or len(self._head) == HEAD_BYTES):
            self._bad("its answer is no HTTP" if self._head else "it closed without an answer")
        elif found is not None and int(found[1]) not in WELL:
            self._bad(f"it answers with status {int(found[1])}")
        elif not data:
            self._good()
        elif self._received > MAX_ANSWER_BYTES:
            self._bad(f"its answer is longer than {MAX_ANSWER_BYTES // 2**20} MiB")

    def _on_timeout(self) -> None:
        seconds = f"{self._check.timeout:g} s"
        if self._received:
            self._bad(f"its answer has not ended after {seconds}")
        else:
            self._bad(f"no answer after {seconds}")

    def _good(self) -> None:
        self._rest()
        self._failures = 0
        self._told(self._check, True, "")

    def _bad(self, why: str) -> None:
        self._rest()
        self._failures += 1
        if self._failures >= self._check.retries:
            self._told(self._check, False, why)

    def _rest(self) -> None:
        """Until an interval after the question, or no longer where its answer took that long."""
        self.stop()
        rest = self._began + self._check.interval - time.monotonic()
        self._loop.start_timer("health", max(0, rest), self.start)
