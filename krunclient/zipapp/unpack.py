"""Files out of the archive, for `extract`. A large one is there in parts, NAME@OFFSET.

Most of a first start is inflating the library pair, so each processor takes its share.
"""

from __future__ import annotations

import os
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    Result = TypeVar("Result")

MOST_HELPERS = 3  # each has a part in memory
END_BYTES = 22  # APPNOTE.TXT of zip: the end of central directory record, with no comment


class Archive:
    """The zip file, opened once, by what its member `contents` says of the others: the CRC-32, the
    place of the data, its size there and unpacked, and the name. Raises OSError and ValueError, and
    zipimport's ImportError, EOFError or zlib.error where that one is damaged.
    """

    def __init__(self, path: str) -> None:
        contents: bytes = __loader__.get_data("contents")  # type: ignore[name-defined]
        self._members = {}
        for line in contents.decode().splitlines():
            crc, place, packed, size, name = line.split(" ", 4)
            self._members[name] = int(crc, 16), int(place), int(packed), int(size)
        self.names = list(self._members)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        end = os.fstat(self._descriptor).st_size - END_BYTES
        record = os.pread(self._descriptor, END_BYTES, end)
        directory, at = (int.from_bytes(record[n : n + 4], "little") for n in (12, 16))
        self._start = end - directory - at  # places count from here: a shell's line is in front

    def read(self, name: str) -> bytes:
        """Raises OSError, and zlib.error where it is damaged."""
        crc, place, packed, size = self._members[name]
        data = os.pread(self._descriptor, packed, self._start + place)
        data = zlib.decompress(data, -zlib.MAX_WBITS, size)
        if zlib.crc32(data) != crc:
            raise zlib.error(f"{name} has changed")
        return data

    def close(self) -> None:
        os.close(self._descriptor)


def unpack(
    archive: Archive, parts: Sequence[str], directory: str, meanwhile: Callable[[], Result]
) -> tuple[set[str], Result]:
    """Unpack parts into a directory. Returns the names of the files, and what `meanwhile` returns,
    which this process calls while others unpack. Raises as `Archive.read` does.
    """
    files = {part.partition("@")[0] for part in parts}
    for file in files:
        path = f"{directory}/{file}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "xb").close()
    queue, fill = os.pipe()
    os.write(fill, bytes(range(len(parts))))  # they are few: a byte tells which
    os.close(fill)
    reports, report = os.pipe()

    def take_parts() -> None:
        while taken := os.read(queue, 1):
            _unpack(archive, parts[taken[0]], directory)
            os.write(report, taken)

    def help_out() -> None:
        os.close(reports)  # so that a report to nobody fails: without this process there is no use
        take_parts()

    helpers = _fork(help_out)
    try:
        result = meanwhile()
        take_parts()
    finally:
        os.read(queue, len(parts))  # after a failure, nobody takes another
        os.close(report)
        unpacked = b"".join(iter(lambda: os.read(reports, len(parts)), b""))  # until all have ended
        _reap(helpers)
        os.close(queue)
        os.close(reports)
    # What a helper has failed with, this process will see too.
    for number in set(range(len(parts))).difference(unpacked):
        _unpack(archive, parts[number], directory)
    return files, result


def _unpack(archive: Archive, part: str, directory: str) -> None:
    data = archive.read(part)
    name, _, offset = part.partition("@")
    with open(f"{directory}/{name}", "r+b") as file:
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
