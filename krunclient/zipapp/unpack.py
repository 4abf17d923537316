"""Files out of the archive, for `extract`. A large one is there in parts, NAME@OFFSET.

Most of a first start is inflating the library pair, so each processor takes its share.
"""

from __future__ import annotations

import os
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    Result = TypeVar("Result")

MOST_HELPERS = 3  # each has a part in memory


def contents() -> dict[str, int]:
    """The names of what is to be extracted, and the CRC-32 of each. Raises OSError, ValueError, and
    as `read` does.
    """
    lines = (line.split(" ", 1) for line in read("contents").decode().splitlines())
    return {name: int(crc, 16) for crc, name in lines}


def read(name: str, crc: int | None = None) -> bytes:
    """What is in the archive. Raises OSError where it can't be read, and zlib.error, EOFError or
    zipimport's ImportError where it is damaged.
    """
    data: bytes = __loader__.get_data(name)  # type: ignore[name-defined]
    if crc is not None and zlib.crc32(data) != crc:
        raise zlib.error(f"{name} has changed")
    return data


def unpack(
    parts: Mapping[str, int], directory: str, meanwhile: Callable[[], Result]
) -> tuple[set[str], Result]:
    """Unpack into a directory. Returns the names of the files, and what `meanwhile` returns, which
    this process calls while others unpack. Raises as `read` does.
    """
    files = {name.partition("@")[0] for name in parts}
    for file in files:
        path = f"{directory}/{file}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "xb").close()
    names = list(parts)
    queue, fill = os.pipe()
    os.write(fill, bytes(range(len(names))))  # they are few: a byte tells which
    os.close(fill)
    reports, report = os.pipe()

    def take_parts() -> None:
        while taken := os.read(queue, 1):
            name = names[taken[0]]
            _unpack(name, parts[name], directory)
            os.write(report, taken)

    def help_out() -> None:
        os.close(reports)  # so that a report to nobody fails: without this process there is no use
        take_parts()

    helpers = _fork(help_out)
    try:
        result = meanwhile()
        take_parts()
    finally:
        os.read(queue, len(names))  # after a failure, nobody takes another
        os.close(report)
        unpacked = b"".join(iter(lambda: os.read(reports, len(names)), b""))  # until all have ended
        _reap(helpers)
        os.close(queue)
        os.close(reports)
    # What a helper has failed with, this process will see too.
    for number in set(range(len(names))).difference(unpacked):
        _unpack(names[number], parts[names[number]], directory)
    return files, result


def _unpack(name: str, crc: int, directory: str) -> None:
    data = read(name, crc)
    file_name, _, offset = name.partition("@")
    with open(f"{directory}/{file_name}", "r+b") as file:
        file.seek(int(offset or 0))
        file.write(data)


def _fork(work: Callable[[], None]) -> list[int]:
    helpers: list[int] = []
    try:
        for _ in range(min(len(os.sched_getaffinity(0)) - 1, MOST_HELPERS)):
            helper = os.fork()
            if not helper:
                try:
                    work()
                finally:
                    os._exit(0)
            helpers.append(helper)
    except OSError:
        pass  # there may be no more processes: this one does what is left
    return helpers


def _reap(helpers: list[int]) -> None:
    for helper in helpers:
        try:
            os.waitpid(helper, 0)
        except ChildProcessError:
            pass  # SIGCHLD is ignored, waitpid(2)
