"""Whether this process can speak to KVM."""

from __future__ import annotations

import errno
import os

from krunclient.errors import HostError, LaunchError, PermissionDeniedError, failed_call
from krunclient.model import KVM

KVM_GET_API_VERSION = 0xAE00  # <linux/kvm.h>
KVM_API_VERSION = 12


def check(path: str = KVM) -> None:
    """Raises HostError without a KVM to speak to, PermissionDeniedError without the right to.

    This says that KVM is there, not that a guest runs: some cloud machines offer a KVM on which
    no guest gets past its first instructions.
    """
    # fcntl is a module of its own file on some builds of Python.
    from fcntl import ioctl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _error(path, error) from None
    try:
        version = ioctl(descriptor, KVM_GET_API_VERSION)
    except OSError as error:
        raise _error(path, error) from None
    finally:
        os.close(descriptor)
    if version != KVM_API_VERSION:
        raise HostError(
            "KVM can't be used",
            path,
            f"it speaks version {version} of the API",
            f"use a kernel that speaks version {KVM_API_VERSION}",
        )


def _error(path: str, error: OSError) -> LaunchError:
    what = "KVM can't be used"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "add the user to the group of that device, often kvm"
        return failed_call(what, path, error, remedy, PermissionDeniedError)
    remedy = "load kvm_intel or kvm_amd, and switch virtualization on in the firmware"
    return failed_call(what, path, error, remedy)
