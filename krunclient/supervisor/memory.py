"""Hides argv and environment from other processes, which see them in /proc/PID."""

from __future__ import annotations

import ctypes
import sys

from krunclient.supervisor.usage import stat_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


def read_areas() -> tuple[int, int, int, int]:
    """arg_start, arg_end, env_start, env_end of proc_pid_stat(5): addresses in this process."""
    start, end, first, last = (int(field) for field in stat_of("self")[48 - 3 : 52 - 3])
    return start, end, first, last


def hide_values(options: Collection[bytes]) -> None:
    """Overwrite the environment with zeros, and VALUE in `--env NAME=VALUE`, for each of these
    options, with asterisks.

    Python has copies of its own by now; /proc/PID/environ and /proc/PID/cmdline have not.
    """
    start, end, environment_start, environment_end = read_areas()
    ctypes.memset(environment_start, 0, environment_end - environment_start)
    hidden = hide_in_words(ctypes.string_at(start, end - start), options, len(sys.argv) - 1)
    ctypes.memmove(start, hidden, len(hidden))


def hide_in_words(area: bytes, options: Collection[bytes], own: int) -> bytes:
    """The same NUL-terminated words, the values of the options up to -- masked.

    The last `own` of them are krunclient's; those before are Python's.
    """
    words = area.split(b"\0")
    first = max(0, len(words) - 1 - own)
    end = words.index(b"--", first) if b"--" in words[first:] else len(words)
    for position, word in enumerate(words[:end]):
        if position < first:
            continue
        if position > first and words[position - 1] in options:
            words[position] = _masked(word, 1)
        elif word.partition(b"=")[0] in options:
            words[position] = _masked(word, 2)
    return b"\0".join(words)


def _masked(word: bytes, part: int) -> bytes:
    """Mask what follows the `part`-th equals sign."""
    pieces = word.split(b"=", part)
    if len(pieces) <= part:
        return word
    return b"=".join([*pieces[:part], b"*" * len(pieces[part])])
