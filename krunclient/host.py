"""Config to HostFacts: what this host offers for it. Probes read; they change nothing."""

from __future__ import annotations

import errno
import os

from krunclient import libraries, program
from krunclient.bindings.libc import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_STREAM_CLOEXEC,
    SOL_SOCKET,
)
from krunclient.errors import BusyError, HostError, LaunchError, PermissionDeniedError, reason
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

    Raises RootError, BusyError, PermissionDeniedError or HostError for the first thing missing.
    """
    machine = find_machine()
    program.check(libc, config.root_path, config.exec_path, machine)
    check_port(libc, config.local_port)
    pair = libraries.find(config.libkrun, config.libkrunfw, machine)
    check_kvm()
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


def check_port(libc: Libc, port: int) -> None:
    """Raises BusyError where something listens on the port, at any of the host's addresses.

    SO_REUSEADDR is set because connections of an earlier run may still be in TIME_WAIT: Linux
    then allows the bind, and still refuses it beside a listener. SO_REUSEPORT is not, because a
    listener that has it would share the port with us.
    """
    for family, address in (
        (AF_INET, _sockaddr_in(port, bytes(4))),
        (AF_INET6, _sockaddr_in6(port, bytes(16))),
    ):
        try:
            descriptor = libc.socket(family, SOCK_STREAM_CLOEXEC, 0)
        except OSError:
            continue  # a host without IPv6
        try:
            _set_option(libc, descriptor, SOL_SOCKET, SO_REUSEADDR)
            if family == AF_INET6:
                _set_option(libc, descriptor, IPPROTO_IPV6, IPV6_V6ONLY)
            libc.bind(descriptor, address, len(address))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise _port_error(port, error) from None
        finally:
            os.close(descriptor)


def _port_error(port: int, error: OSError) -> LaunchError:
    why = reason(error)
    if error.errno == errno.EADDRINUSE:
        return BusyError("LOCAL_PORT can't be used", str(port), why, "try again or use another")
    return PermissionDeniedError(
        "LOCAL_PORT can't be used", str(port), why, "use a port from 1024 on"
    )


def _set_option(libc: Libc, descriptor: int, level: int, name: int) -> None:
    from ctypes import c_int, sizeof

    libc.setsockopt(descriptor, level, name, c_int(1), sizeof(c_int))


def _sockaddr_in(port: int, address: bytes) -> bytes:
    """struct sockaddr_in, ip(7)."""
    return AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + address + bytes(8)


def _sockaddr_in6(port: int, address: bytes) -> bytes:
    """struct sockaddr_in6, ipv6(7)."""
    return AF_INET6.to_bytes(2, "little") + port.to_bytes(2, "big") + bytes(4) + address + bytes(4)
