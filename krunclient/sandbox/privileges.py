"""Who a child runs as, and what it may still do: user, user namespace, capabilities."""

from __future__ import annotations

import errno
import os

from krunclient.bindings.libc import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    PR_CAPBSET_DROP,
    PR_SET_NO_NEW_PRIVS,
    CapabilityHeader,
    CapabilitySets,
)
from krunclient.errors import LaunchError, PermissionDeniedError, failed_call
from krunclient.sandbox.confinement import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.model import User

LAST_CAPABILITY = 63  # of the two words that capset(2) takes; today's kernels know 40
# What may forbid user namespaces: of each kernel, of Debian's, of Ubuntu's AppArmor.
APPARMOR_SWITCH = "kernel.apparmor_restrict_unprivileged_userns"
USER_NAMESPACE_SWITCHES = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    APPARMOR_SWITCH,
)
CAPABILITY_VERSION_3 = 0x20080522


def switch_user(user: User) -> None:
    """Change from root to a user for good. Raises PermissionDeniedError."""
    try:
        os.setgroups(list(user.groups))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise user_error(user, error) from None


def user_error(user: User, error: OSError) -> LaunchError:
    """The error for a user that this process can't become."""
    what, who = "the VMM can't run as another user", f"{user.uid}:{user.gid}"
    remedy = "start krunclient as root, or without --user"
    return failed_call(what, who, error, remedy, PermissionDeniedError)


def enter_namespaces(libc: Libc, *, user_namespace: bool) -> None:
    """A mount namespace of the child's own, and a user namespace around it if one is wanted.

    In that one the child is root, which is this user on the host; no other user is mapped.
    Raises HostError if the host does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user_namespace else 0))
        if user_namespace:
            _map_root("/proc/self", uid, gid)
    except OSError as error:
        raise _namespace_error(error, user_namespace=user_namespace) from None


def enter_namespaces_as(libc: Libc, user: User) -> None:
    """As `enter_namespaces`, by root, and as another user from then on: root in the new namespace
    is that user on the host.

    This process is closed to that user's other processes all the time, ptrace(2): it still has
    what root had in memory. So another one, which stays root, writes the maps.

    Raises HostError.
    """
    entered_reader, entered_writer = os.pipe2(os.O_CLOEXEC)
    mapper = os.fork()
    if mapper == 0:
        try:
            os.close(entered_writer)
            if os.read(entered_reader, 1):
                _map_root(f"/proc/{os.getppid()}", user.uid, user.gid)
                os._exit(0)
        finally:
            os._exit(1)
    try:
        os.close(entered_reader)
        os.setgroups([])
        libc.unshare(CLONE_NEWNS | CLONE_NEWUSER)
        os.write(entered_writer, b"x")
        os.close(entered_writer)
        if os.waitpid(mapper, 0)[1] != 0:
            raise PermissionError(errno.EPERM, "uid_map")
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        raise _namespace_error(error, user_namespace=True) from None


def _map_root(process: str, uid: int, gid: int) -> None:
    """Let root in a process's user namespace be this user outside, and no other be there. Raises
    OSError. user_namespaces(7).
    """
    _write(f"{process}/setgroups", "deny")
    _write(f"{process}/uid_map", f"0 {uid} 1")
    _write(f"{process}/gid_map", f"0 {gid} 1")


def _namespace_error(error: OSError, *, user_namespace: bool) -> LaunchError:
    what = "the sandbox can't be made"
    if not user_namespace:
        remedy = "run krunclient with CAP_SYS_ADMIN, or as a user that is not root"
        return failed_call(what, "a mount namespace", error, remedy)
    remedy = "allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone"
    if switch(APPARMOR_SWITCH) == "1":
        remedy = f"allow them: sysctl {APPARMOR_SWITCH}=0"
    return failed_call(what, "a user namespace", error, remedy)


def drop_capabilities(libc: Libc, kept: tuple[str, ...]) -> None:
    """Keep these and no other, in every set, for good. Raises OSError."""
    bits = sum(1 << CAPABILITIES[name] for name in kept)
    for number in range(LAST_CAPABILITY + 1):
        if not bits >> number & 1:
            try:
                libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
            except OSError:
                break  # EINVAL: the kernel knows no more of them
    # effective, permitted, inheritable; then the same for 32 and up
    sets = CapabilitySets((CapabilitySets._fields_[0][1])(bits, bits, 0, 0, 0, 0))
    libc.capset(CapabilityHeader(CAPABILITY_VERSION_3, 0), sets)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def switch(name: str) -> str:
    """The value of a sysctl(8), empty if this kernel has none of that name."""
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}") as file:
            return file.read().strip()
    except OSError:
        return ""
