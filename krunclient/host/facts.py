"""Config to HostFacts: what this host offers for it. Probes read; they change nothing."""

from __future__ import annotations

import os

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.bindings.libc import RLIMITS, ResourceLimit
from krunclient.config import check_volumes
from krunclient.errors import HostError, UsageError
from krunclient.host import kvm, libraries, program
from krunclient.model import BOUNDED
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.config import Config
    from krunclient.host.passt import Programs
    from krunclient.model import LibraryPair


LANDLOCK_CREATE_RULESET_VERSION = 1  # <linux/landlock.h>
HEAD_BYTES = 4096  # of a file in /proc, where all that is read here stands


class HostFacts(Record):
    """`exec_path` is the guest's program, absolute in the guest. `vmm_uid` is who the VMM runs as,
    `landlock_abi` 0 if the kernel has no Landlock, `hard_limits` this process's own of BOUNDED by
    name. `open_files` is the highest limit on them that this process can have, `processors` how
    many it may run on, `available_mib` how much memory a new program can have, None if that is not
    told. `terminal` tells whether a user types and looks at one. `passt` are the programs of
    `--network passt`, None without.
    """

    architecture: Architecture
    exec_path: str
    libraries: LibraryPair
    vmm_uid: int
    landlock_abi: int
    hard_limits: Mapping[str, int]
    open_files: int
    processors: int
    available_mib: int | None
    terminal: bool = False
    passt: Programs | None = None


def find_architecture() -> Architecture:
    """This machine's. Raises HostError for one that is not served."""
    machine = os.uname().machine
    if machine in ARCHITECTURES:
        return ARCHITECTURES[machine]
    served = " or ".join(ARCHITECTURES)
    raise HostError(
        "no VM can be started", machine, "this architecture is not served", f"use {served}"
    )


def probe(libc: Libc, architecture: Architecture, config: Config) -> HostFacts:
    """Find what a launch needs, the user's own mistakes first.

    Raises UsageError, RootPathError, PermissionDeniedError or HostError for the first thing that
    is missing.
    """
    check_memory(config.guest.memory_mib, architecture)
    check_volumes(config.files)
    root_path, exec_paths = config.files.root_path, config.guest.exec_paths
    exec_path = program.find(libc, root_path, exec_paths, architecture)
    pair = libraries.find(config.paths.libkrun, config.paths.libkrunfw, architecture)
    programs = None
    if config.network == "passt":
        from krunclient.host import passt

        programs = passt.programs(config, architecture, vmm_uid(config))
        passt.check_cards(pair)
    if config.user is None:
        kvm.check()  # else the VMM child does, as that user
    return HostFacts(
        architecture=architecture,
        exec_path=exec_path,
        libraries=pair,
        vmm_uid=vmm_uid(config),
        landlock_abi=landlock_abi(libc) if config.sandbox else 0,
        hard_limits=hard_limits(libc, BOUNDED),
        open_files=open_files(libc),
        processors=processors(),
        available_mib=memory_mib("MemAvailable"),
        terminal=config.console and is_at_terminal(),
        passt=programs,
    )


def check_memory(mib: int, architecture: Architecture) -> None:
    """Raises UsageError if a guest may not come up with that."""
    least = architecture.least_memory_mib
    if mib < least:
        why = f"a guest on {architecture.machine} needs {least}"
        raise UsageError("--memory can't be used", str(mib), why, f"set it to {least} or more")


def landlock_abi(libc: Libc) -> int:
    """The kernel's Landlock ABI, 0 if it has none: landlock_create_ruleset(2)."""
    try:
        return libc.landlock_create_ruleset(None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def hard_limits(libc: Libc, names: Iterable[str]) -> Mapping[str, int]:
    """What this process may raise these limits to, getrlimit(2). Raises OSError."""
    found, limit = {}, ResourceLimit()
    for name in names:
        libc.getrlimit(RLIMITS[name], limit)
        found[name] = int(limit.hard)
    return found


def open_files(libc: Libc) -> int:
    """The highest limit on open files that this process can have: fs.nr_open of proc(5) if it may
    raise its hard limit, which is tried and taken back, else that one. Raises OSError.
    """
    number, before = RLIMITS["RLIMIT_NOFILE"], ResourceLimit()
    libc.getrlimit(number, before)
    try:
        most = int(_head("/proc/sys/fs/nr_open"))
    except (OSError, ValueError):
        return int(before.hard)
    if before.hard >= most or os.geteuid() != 0:
        return min(int(before.hard), most)
    try:
        libc.setrlimit(number, ResourceLimit(before.soft, most))
        libc.setrlimit(number, before)
    except PermissionError:  # no CAP_SYS_RESOURCE, as in most containers
        return int(before.hard)
    return most


def processors() -> int:
    """How many this process may run on, sched_getaffinity(2)."""
    return len(os.sched_getaffinity(0))


def memory_mib(name: str) -> int | None:
    """A field of /proc/meminfo, proc(5): `MemTotal` or `MemAvailable`, what a new program can have
    without swapping. None where it is not told, as in a /proc of processes alone.
    """
    head = f"{name}:".encode()
    try:
        for line in _head("/proc/meminfo").split(b"\n"):
            if line.startswith(head):
                return int(line.split()[1]) // 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _head(path: str) -> bytes:
    """Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)


def is_at_terminal() -> bool:
    """Whether standard input and output are a terminal that this process is in front at."""
    try:
        return os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False  # no terminal, or another session's


def vmm_uid(config: Config) -> int:
    """Who the VMM runs as."""
    return os.geteuid() if config.user is None else config.user.uid
