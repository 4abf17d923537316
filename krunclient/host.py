"""Config to HostFacts: what this host offers for it. Probes read; they change nothing."""

from __future__ import annotations

import errno
import os

from krunclient import libraries, program
from krunclient.errors import HostError, LaunchError, PermissionDeniedError, UsageError, reason
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.config import Config
    from krunclient.libraries import LibraryPair

KVM = "/dev/kvm"
KVM_GET_API_VERSION = 0xAE00  # <linux/kvm.h>
KVM_API_VERSION = 12


class HostFacts(Record):
    machine: str
    libraries: LibraryPair


def probe(libc: Libc, config: Config) -> HostFacts:
    """Find what a launch needs, the user's own mistakes first.

    Raises UsageError, RootError, PermissionDeniedError or HostError for the first thing missing.
    """
    machine = find_machine()
    for volume in config.files.volumes:
        if not os.path.isdir(volume.host_directory):
            raise UsageError(
                "--volume can't be used",
                volume.host_directory,
                "it is no directory of this host",
                "make it, or name another",
            )
    program.check(libc, config.root_path, config.exec_path, machine)
    pair = libraries.find(config.libkrun, config.libkrunfw, machine)
    if config.user is None:
        check_kvm()  # else the VMM child does, as that user
    return HostFacts(machine=machine, libraries=pair)


def find_machine() -> str:
    """The architecture by its uname(2) name. Raises HostError for one that is not served."""
    machine = os.uname().machine
    if machine in program.ELF_MACHINES:
        return machine
    raise HostError(
        "no VM can be started", machine, "this architecture is not served", "use x86_64"
    )


def check_kvm(path: str = KVM) -> None:
    """Raises HostError without a KVM to speak to, PermissionDeniedError without the right to.

    This says that KVM is there, not that a guest runs: some cloud machines offer a KVM on which
    no guest gets past its first instructions.
    """
    # fcntl is a module of its own file on some builds of Python.
    from fcntl import ioctl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _kvm_error(path, error) from None
    try:
        version = ioctl(descriptor, KVM_GET_API_VERSION)
    except OSError as error:
        raise _kvm_error(path, error) from None
    finally:
        os.close(descriptor)
    if version != KVM_API_VERSION:
        raise HostError(
            "KVM can't be used",
            path,
            f"it speaks version {version} of the API",
            f"use a kernel that speaks version {KVM_API_VERSION}",
        )


def _kvm_error(path: str, error: OSError) -> LaunchError:
    why = reason(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(
            "KVM can't be used", path, why, "add the user to the group of that device, often kvm"
        )
    return HostError(
        "KVM can't be used",
        path,
        why,
        "load kvm_intel or kvm_amd, and switch virtualization on in the firmware",
    )
