"""What processes use, by proc_pid_stat(5): it tells that of processes that are closed, too."""

from __future__ import annotations

import os
import time
from ctypes import c_int, c_long

from krunclient.bindings.libc import RUSAGE_LONGS
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from krunclient.bindings.libc import Libc


STAT_BYTES = 4096  # more than its 52 numbers take


class Usage(Record):
    """Processor time, of all threads, and resident memory, shared pages counted in each process."""

    processor_seconds: float
    resident_bytes: int


def stat_of(process: int | str) -> list[bytes]:
    """The fields of proc_pid_stat(5) from the third on. Raises OSError, if it has ended say."""
    with open(f"/proc/{process}/stat", "rb", 0) as file:
        # The name in parentheses may hold anything.
        return file.read(STAT_BYTES).rpartition(b")")[2].split()


def of(processes: Iterable[int]) -> Usage:
    """Of all of them together; one that has ended uses nothing."""
    ticks = pages = 0
    for process in processes:
        try:
            stat = stat_of(process)
        except OSError:
            continue
        ticks += int(stat[14 - 3]) + int(stat[15 - 3])
        pages += int(stat[24 - 3])
    return Usage(
        processor_seconds=ticks / os.sysconf("SC_CLK_TCK"),
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
    )


def reap(libc: Libc, child: int) -> tuple[int, Usage]:
    """Wait for a child's end: its wait status, and what it has used, memory at its peak.

    Raises OSError.
    """
    status, used = c_int(), (c_long * RUSAGE_LONGS)()
    libc.wait4(child, status, 0, used)
    seconds, microseconds = used[0] + used[2], used[1] + used[3]
    return status.value, Usage(
        processor_seconds=seconds + microseconds / 10**6, resident_bytes=used[4] * 1024
    )


def seconds_since_start(process: int | str) -> float:
    """How long a process has been there, to 10 ms. Raises OSError."""
    started = int(stat_of(process)[22 - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
