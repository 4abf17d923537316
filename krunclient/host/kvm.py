"""Whether this process can speak to KVM, and if not, why."""

from __future__ import annotations

import errno
import os

from krunclient.errors import HostError, LaunchError, PermissionDeniedError, failed_call, reason
from krunclient.model import KVM

KVM_GET_API_VERSION = 0xAE00  # <linux/kvm.h>
KVM_API_VERSION = 12

WHAT = "KVM can't be used"
LOAD_MODULE = "load kvm_intel or kvm_amd, and switch virtualization on in the firmware"
REMEDIES = {
    errno.EBUSY: "end the other hypervisor that has the processor, VirtualBox say",
    # The file is open to this user: it is the device that may not be used.
    errno.EPERM: "let this container or unit have the device: --device /dev/kvm, DeviceAllow=",
}


def check(path: str = KVM) -> None:
    """Raises HostError without a KVM to speak to, PermissionDeniedError without the right to.

    This says that KVM is there, not that a guest runs: `vcpu.run_guests` does, for who has time.
    """
    # fcntl is a module of its own file on some builds of Python.
    from fcntl import ioctl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as failure:
        raise error(path, failure) from None
    try:
        version = ioctl(descriptor, KVM_GET_API_VERSION)
    except OSError as failure:
        raise error(path, failure) from None
    finally:
        os.close(descriptor)
    if version != KVM_API_VERSION:
        raise HostError(
            WHAT,
            path,
            f"it speaks version {version} of the API",
            f"use a kernel that speaks version {KVM_API_VERSION}",
        )


def error(path: str, failure: OSError) -> LaunchError:
    """What a failed call on the device means."""
    if failure.errno == errno.EACCES:
        try:
            why, remedy = f"{reason(failure)}: {rights(path)}", _how_to_get_in(path)
        except OSError:
            why, remedy = reason(failure), "let this user look into its directory"
        return PermissionDeniedError(WHAT, path, why, remedy)
    remedy = REMEDIES.get(failure.errno or 0, LOAD_MODULE)
    kind = PermissionDeniedError if failure.errno == errno.EPERM else HostError
    return failed_call(WHAT, path, failure, remedy, kind)


def rights(path: str) -> str:
    """Who may open a file, as `root:kvm 0660`, and whether an ACL says more. Raises OSError."""
    status = os.stat(path)
    owner, group = _user_name(status.st_uid), _group_name(status.st_gid)
    acl = ", with an ACL" if _has_acl(path) else ""
    return f"{owner}:{group} {status.st_mode & 0o7777:04o}{acl}"


def _how_to_get_in(path: str) -> str:
    status, me = os.stat(path), _user_name(os.geteuid())
    if status.st_mode & 0o060 != 0o060 or status.st_gid == 0:
        return f"give this user the right, by setfacl -m u:{me}:rw {path} as root"
    group = _group_name(status.st_gid)
    if me in _members(status.st_gid):
        return f"log in anew: {me} is in the group {group}, and this session is from before"
    return f"add the user to that group, by usermod -aG {group} {me} as root, and log in anew"


def _has_acl(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False  # none, or none on such a file system


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _members(gid: int) -> list[str]:
    import grp

    try:
        return grp.getgrgid(gid).gr_mem
    except KeyError:
        return []
