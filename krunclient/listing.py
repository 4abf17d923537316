"""--list: the VMs of this network namespace, as /proc shows them; root sees everybody's."""

from __future__ import annotations

import os

from krunclient import cli
from krunclient import options as rows
from krunclient.errors import HostError, UsageError, failed_call
from krunclient.log import one_line
from krunclient.record import Record
from krunclient.supervisor import usage
from krunclient.supervisor.presence import NAME_PREFIX, phase_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from krunclient.cli import Options

WHAT = "VMs can't be listed"
NAMES = "/proc/self/net/unix"  # those of this network namespace, proc_pid_net(5)
MAX_PID_DIGITS = 7  # PID_MAX_LIMIT of <linux/threads.h> is 2^22
MAX_WORDS_OF_PYTHON = 64


class Vm(Record):
    """`pid` is the supervisor's, `user` its numeric id. `root` is ROOT_PATH as it was given."""

    pid: int
    user: int
    root: str
    port: int
    phase: str
    uptime_seconds: float
    processor_seconds: float
    memory_mib: float

    def cells(self) -> tuple[str, ...]:
        return (
            *(str(self.pid), str(self.user), str(self.port), self.phase),
            *(_elapsed(self.uptime_seconds), f"{self.processor_seconds:.1f} s"),
            *(f"{self.memory_mib:.0f} MiB", one_line(self.root)),
        )


HEADS = ("PID", "USER", "PORT", "PHASE", "UPTIME", "PROCESSOR", "MEMORY", "ROOT_PATH")


def run(options: Options) -> str:
    """The list, by port. Raises UsageError for arguments, HostError for a /proc that can't be
    read.
    """
    options.refuse_arguments(rows.LIST)
    vms = sorted(_find(os.geteuid()), key=lambda vm: (vm.port, vm.pid))
    if options.value(rows.LOG_FORMAT) == "json":
        import json

        return json.dumps([vm.as_dict() for vm in vms], indent=2)
    table = [HEADS, *(vm.cells() for vm in vms)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def _find(me: int) -> Iterator[Vm]:
    """Those of a user; of all users, for root."""
    children = _children()
    for pid in sorted(_named()):
        try:
            vm = _look_at(pid, children)
        except OSError:
            _check_that_it_is_not_hidden(pid)
            continue
        except (ValueError, KeyError, IndexError):
            continue  # no process of ours has such files
        if vm is not None and me in (0, vm.user):
            yield vm


def _named() -> set[int]:
    """The process ids that names say. Raises HostError."""
    prefix, found = f" @{NAME_PREFIX}".encode(), set()
    try:
        with open(NAMES, "rb") as file:
            for line in file:
                number = line.partition(prefix)[2].strip()
                if number.isdigit() and len(number) <= MAX_PID_DIGITS and number[:1] != b"0":
                    found.add(int(number))
    except OSError as error:
        raise failed_call(WHAT, NAMES, error, "mount /proc") from None
    return found


def _look_at(pid: int, children: Mapping[int, list[int]]) -> Vm | None:
    """None for a process that is no supervisor: anybody can make a name. Raises OSError, and
    ValueError, KeyError or IndexError for what no process of ours has.
    """
    with open(f"/proc/{pid}/status", "rb") as file:
        fields = dict(line.split(b":", 1) for line in file)
    phase = phase_of(fields[b"Name"].strip().decode("ascii", "replace"))
    arguments = _arguments(pid)
    if phase is None or arguments is None:
        return None
    used = usage.of(_tree(pid, children))
    return Vm(
        pid=pid,
        user=int(fields[b"Uid"].split()[0]),
        root=arguments[0],
        port=arguments[1],
        phase=phase,
        uptime_seconds=round(usage.seconds_since_start(pid), 2),
        processor_seconds=round(used.processor_seconds, 2),
        memory_mib=round(used.resident_bytes / 2**20, 1),
    )


def _arguments(pid: int) -> tuple[str, int] | None:
    """ROOT_PATH and LOCAL_PORT. Python's own words come first, some few: the longest end of the
    command line that krunclient takes is krunclient's. Raises OSError.
    """
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().split(b"\0")[:-1]
    for start in range(1, min(len(words), MAX_WORDS_OF_PYTHON)):
        try:
            root, port = cli.parse(words[start:], {}).arguments
            return root, rows.whole_number("LOCAL_PORT", port, 1, 65535)
        except (UsageError, ValueError):
            continue
    return None


def _children() -> dict[int, list[int]]:
    """The children of each process."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(usage.stat_of(name)[4 - 3])
            except OSError:
                continue  # it has ended
            found.setdefault(parent, []).append(int(name))
    return found


def _tree(pid: int, children: Mapping[int, list[int]]) -> set[int]:
    """It and its descendants, who may change meanwhile."""
    found, left = set(), [pid]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += children.get(one, ())
    return found


def _check_that_it_is_not_hidden(pid: int) -> None:
    """Raises HostError for a process of this user's that is there, and can't be seen in /proc."""
    try:
        os.kill(pid, 0)
    except OSError:
        return  # it has ended, or is another user's
    why = f"it does not show process {pid}"
    raise HostError(WHAT, "/proc", why, "mount it without hidepid, or ask as root")


def _elapsed(seconds: float) -> str:
    """As ps(1) has it: `1-02:03:04`, `02:03:04`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hour:02}:{minute:02}:{second:02}"
