"""Config to HostFacts: what this host offers for it. Probes read; they change nothing."""

from __future__ import annotations

import os

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.bindings.libc import RLIMITS, ResourceLimit
from krunclient.config import check_volumes
from krunclient.errors import HostError
from krunclient.host import kvm, libraries, program
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.config import Config
    from krunclient.model import LibraryPair


CAP_SYS_RESOURCE = 24  # <linux/capability.h>
EVERY_USER = ["0", "0", "4294967295"]  # uid_map of the first user namespace, user_namespaces(7)
LANDLOCK_CREATE_RULESET_VERSION = 1  # <linux/landlock.h>


class HostFacts(Record):
    """`exec_path` is the guest's program, absolute in the guest. `vmm_uid` is who the VMM runs as,
    `landlock_abi` 0 if the kernel has no Landlock, `hard_limits` this process's own by name.
    `open_files` is the highest limit on them that this process can have.
    """

    architecture: Architecture
    exec_path: str
    libraries: LibraryPair
    vmm_uid: int
    landlock_abi: int
    hard_limits: Mapping[str, int]
    open_files: int


def find_architecture() -> Architecture:
    """This machine's. Raises HostError for one that is not served."""
    machine = os.uname().machine
    if machine in ARCHITECTURES:
        return ARCHITECTURES[machine]
    raise HostError(
        "no VM can be started", machine, "this architecture is not served", "use x86_64"
    )


def probe(libc: Libc, architecture: Architecture, config: Config) -> HostFacts:
    """Find what a launch needs, the user's own mistakes first.

    Raises UsageError, RootPathError, PermissionDeniedError or HostError for the first thing that
    is missing.
    """
    check_volumes(config.files)
    root_path, exec_paths = config.files.root_path, config.guest.exec_paths
    exec_path = program.find(libc, root_path, exec_paths, architecture)
    pair = libraries.find(config.libkrun, config.libkrunfw, architecture)
    if config.user is None:
        kvm.check()  # else the VMM child does, as that user
    return HostFacts(
        architecture=architecture,
        exec_path=exec_path,
        libraries=pair,
        vmm_uid=vmm_uid(config),
        landlock_abi=landlock_abi(libc) if config.sandbox else 0,
        hard_limits=hard_limits(libc),
        open_files=open_files(libc),
    )


def landlock_abi(libc: Libc) -> int:
    """The kernel's Landlock ABI, 0 if it has none: landlock_create_ruleset(2)."""
    try:
        return libc.landlock_create_ruleset(None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def hard_limits(libc: Libc) -> Mapping[str, int]:
    """What this process may raise its limits to, getrlimit(2). Raises OSError."""
    found, limit = {}, ResourceLimit()
    for name, number in RLIMITS.items():
        libc.getrlimit(number, limit)
        found[name] = int(limit.hard)
    return found


def open_files(libc: Libc) -> int:
    """The highest limit on open files that this process can have: its hard one, or fs.nr_open of
    proc(5) if it has CAP_SYS_RESOURCE in the first user namespace. Raises OSError.
    """
    hard = hard_limits(libc)["RLIMIT_NOFILE"]
    if os.geteuid() != 0:
        return hard
    try:
        with open("/proc/self/uid_map") as file:
            is_first = file.read().split() == EVERY_USER
        with open("/proc/self/status") as file:
            (effective,) = (line.split()[1] for line in file if line.startswith("CapEff:"))
        with open("/proc/sys/fs/nr_open") as file:
            most = int(file.read())
    except (OSError, ValueError):
        return hard
    may_raise = is_first and int(effective, 16) >> CAP_SYS_RESOURCE & 1
    return max(hard, most) if may_raise else min(hard, most)


def vmm_uid(config: Config) -> int:
    """Who the VMM runs as."""
    return os.geteuid() if config.user is None else config.user.uid
