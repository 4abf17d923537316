"""A person at a terminal: what is typed on its keyboard, and seen on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from typing import Any


class Session:
    """Somebody in front of a pseudo-terminal, whose foreground process `start` starts."""

    def __init__(
        self,
        start: Callable[..., subprocess.Popen[bytes]],
        patience: float,
        owner: int | None = None,
    ) -> None:
        self._patience = patience
        self._keyboard, self.screen = pty.openpty()
        if owner is not None:
            os.fchown(self.screen, owner, owner)
        self.resize(33, 99)
        self.before: list[Any] = termios.tcgetattr(self.screen)
        self.seen = b""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.screen)
        self.process = start(preexec=_take_the_terminal, **streams)

    def resize(self, rows: int, columns: int) -> None:
        """The kernel tells the terminal's foreground processes by SIGWINCH."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, size)

    def type(self, text: bytes) -> None:
        os.write(self._keyboard, text)

    def wait_for(self, text: bytes) -> None:
        """Something that has not been waited for before."""
        deadline = time.monotonic() + self._patience
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            assert select.select([self._keyboard], [], [], left)[0], self.seen
            self.seen += os.read(self._keyboard, 65536)
        self.seen = self.seen.partition(text)[2]

    def is_raw(self) -> bool:
        local: int = termios.tcgetattr(self.screen)[3]
        return not local & (termios.ICANON | termios.ECHO | termios.ISIG)

    def ends_with(self, status: int) -> None:
        """And gives the terminal back as it was."""
        assert self.process.wait(self._patience) == status
        assert termios.tcgetattr(self.screen) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keyboard)
        os.close(self.screen)


def _take_the_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
