"""Who the VMM runs as, and what it may still do: user, user namespace, capabilities, limits."""

from __future__ import annotations

import os

from krunclient.bindings.libc import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    PR_CAPBSET_DROP,
    PR_SET_NO_NEW_PRIVS,
    RLIMIT_AS,
    RLIMIT_CORE,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    RLIMIT_MSGQUEUE,
    RLIMIT_NOFILE,
    RLIMIT_NPROC,
    CapabilityHeader,
    CapabilitySets,
    ResourceLimit,
)
from krunclient.errors import HostError, LaunchError, PermissionDeniedError, reason
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

# <linux/capability.h>. All that the virtio-fs server in libkrun needs to act for the guest's
# users on the guest's own files; each is in force inside the user namespace alone where there is
# one. Nothing else of a VMM needs a capability.
KEPT_CAPABILITIES = {
    "CAP_CHOWN": 0,  # chown by the guest's root
    "CAP_DAC_OVERRIDE": 1,  # the guest's root reads and writes whatever the mode says
    "CAP_FOWNER": 3,  # chmod and utime by the guest's root on files of its other users
    "CAP_FSETID": 4,  # set-user-ID bits stay when the guest's root writes
    "CAP_SETGID": 6,  # files that a user of the guest makes belong to that user's group
    "CAP_SETUID": 7,  # and to that user
}
LAST_CAPABILITY = 63  # of the two words that capset(2) takes; today's kernels know 40
CAPABILITY_VERSION_3 = 0x20080522

# A descriptor an inode that the guest knows, and one a connection.
MAX_OPEN_FILES = 65536
# What a VMM takes beside the guest's RAM: code, stacks, buffers of 1 to 2 MiB a device.
MAX_OWN_MEMORY_MIB = 512
# And of addresses, which bounds the memory that is shared and what the kernel needs for maps:
# about 600 MiB are in use, and the C library may reserve an arena for each thread.
MAX_OWN_ADDRESS_SPACE_MIB = 2048
ARENA_MIB = 64
# About 12 are in use, and one a vCPU.
MAX_OWN_THREADS = 256
# A core of one byte is written nowhere: not to a file, which needs a page, and not to a pipe,
# for which the kernel takes this very value as the sign to leave it (fs/coredump.c).
NO_CORE = 1


class User(Record):
    """Numeric ids, and the supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def become(user: User) -> None:
    """Change from root to a user for good. Raises PermissionDeniedError."""
    try:
        os.setgroups(list(user.groups))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise PermissionDeniedError(
            "the VMM can't run as another user",
            f"{user.uid}:{user.gid}",
            reason(error),
            "start krunclient as root, or without --user",
        ) from None


def enter_namespaces(libc: Libc) -> None:
    """A mount namespace of the child's own; for all but root a user namespace around it.

    In that one the child is root, which is this user on the host, and there is nobody else.
    Raises HostError where the host does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if uid else 0))
        if uid:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"0 {uid} 1")
            _write("/proc/self/gid_map", f"0 {gid} 1")
    except OSError as error:
        raise _namespace_error(uid, error) from None


def _namespace_error(uid: int, error: OSError) -> LaunchError:
    if not uid:
        return HostError(
            "the sandbox can't be made",
            "a mount namespace",
            reason(error),
            "run krunclient with CAP_SYS_ADMIN, or as a user that is not root",
        )
    remedy = "allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone"
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1":
        remedy = "allow them: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    return HostError("the sandbox can't be made", "a user namespace", reason(error), remedy)


def drop_capabilities(libc: Libc, *, set_id_bits: bool) -> None:
    """Keep KEPT_CAPABILITIES and no other, in every set, for good. Raises OSError.

    Without `set_id_bits` the kernel takes those bits off a file that is written to.
    """
    kept = sum(1 << number for number in KEPT_CAPABILITIES.values())
    if not set_id_bits:
        kept &= ~(1 << KEPT_CAPABILITIES["CAP_FSETID"])
    for number in range(LAST_CAPABILITY + 1):
        if not kept >> number & 1:
            try:
                libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
            except OSError:
                break  # EINVAL: the kernel knows no more of them
    # effective, permitted, inheritable; then the same for 32 and up
    sets = CapabilitySets((CapabilitySets._fields_[0][1])(kept, kept, 0, 0, 0, 0))
    libc.capset(CapabilityHeader(CAPABILITY_VERSION_3, 0), sets)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forbid_core_dumps(libc: Libc) -> None:
    """What is in memory, secrets among it, goes into no core dump. Raises OSError."""
    if _lower_limit(libc, RLIMIT_CORE, NO_CORE) < NO_CORE:
        # The kernel dumps to a pipe all the same: then a dump that holds no memory, core(5).
        with open("/proc/self/coredump_filter", "wb") as file:
            file.write(b"0")


def set_limits(libc: Libc, guest_memory_mib: int, vcpus: int, *, user_namespace: bool) -> None:
    """Bound what the VMM can take of the host, as far as limits of a process do.

    What they leave open (threads of root's, the kernel's own memory) is for a cgroup.
    Raises OSError.
    """
    data_mib = guest_memory_mib + MAX_OWN_MEMORY_MIB
    address_space_mib = guest_memory_mib + MAX_OWN_ADDRESS_SPACE_MIB + vcpus * ARENA_MIB
    limits = {
        RLIMIT_NOFILE: MAX_OPEN_FILES,
        RLIMIT_DATA: data_mib * 2**20,
        RLIMIT_AS: address_space_mib * 2**20,
        RLIMIT_MEMLOCK: 0,
        RLIMIT_MSGQUEUE: 0,
    }
    # Outside a user namespace of its own, the VMM would be counted with all that the user runs.
    if user_namespace:
        limits[RLIMIT_NPROC] = vcpus + MAX_OWN_THREADS
    for limit, value in limits.items():
        _lower_limit(libc, limit, value)


def _lower_limit(libc: Libc, limit: int, value: int) -> int:
    """Set both limits to a value, or to the hard limit where that is lower. Returns which it is."""
    before = ResourceLimit()
    libc.getrlimit(limit, before)
    bound: int = min(value, before.hard)
    libc.setrlimit(limit, ResourceLimit(bound, bound))
    return bound


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
