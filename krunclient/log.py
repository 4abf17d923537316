"""krunclient's own messages: one line each, on stderr, never on stdout."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.errors import LaunchError

LEVELS = ("error", "warning", "info", "debug")


class Log:
    """Writes the messages of `level` and of the levels above it to a file descriptor."""

    def __init__(self, level: str, descriptor: int = 2) -> None:
        self._wanted = LEVELS[: LEVELS.index(level) + 1]
        self._descriptor = descriptor

    def failure(self, error: LaunchError) -> None:
        self._write("error", str(error))

    def info(self, text: str) -> None:
        self._write("info", text)

    def debug(self, text: str) -> None:
        self._write("debug", text)

    def _write(self, level: str, text: str) -> None:
        if level in self._wanted:
            line = f"krunclient: {level}: {one_line(text)}\n"
            write_all(self._descriptor, line.encode("utf-8", "backslashreplace"))


def one_line(text: str) -> str:
    """The text with every control character escaped, so that it can't forge a line."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def write_all(descriptor: int, data: bytes) -> bool:
    """write(2) until all is written. False where that can't be: a reader that is gone, say."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return False
    return True
