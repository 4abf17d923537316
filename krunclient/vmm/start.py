"""The VMM child's last steps: the plan becomes calls of libkrun, and the guest starts."""

from __future__ import annotations

import errno
import os
from ctypes import Array, c_char_p, c_uint8

from krunclient.bindings import libkrun
from krunclient.bindings.libc import RLIMITS
from krunclient.bindings.libkrun import (
    NET_FEATURES,
    ROOT_TAG,
    TSI_HIJACK_INET,
    Krun,
    KrunError,
    LoadError,
)
from krunclient.errors import LIMITS, SEE_LIMITS, HostError, VmError
from krunclient.model import INIT_FILE, Features
from krunclient.vmm import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from krunclient.bindings.libc import Libc
    from krunclient.model import LibraryPair, Rlimit
    from krunclient.plan import Plan
    from krunclient.secret import Secret


def load(libc: Libc, pair: LibraryPair) -> Krun:
    """Load the pair. Raises HostError if it can't be loaded, or is not what the plan says."""
    remedy = "give another by --libkrun and --libkrunfw"
    try:
        krun = libkrun.load(libc, pair.libkrun, pair.libkrunfw)
    except LoadError as error:
        what = "a library can't be loaded"
        if _is_a_limit(error):
            raise VmError(what, error.path, error.why, SEE_LIMITS) from None
        raise HostError(what, error.path, error.why, remedy) from None
    if Features.of(krun.has) != pair.features:
        why = "it has other functions than it had a moment ago"
        raise HostError("a library can't be loaded", pair.libkrun, why, remedy)
    return krun


def _is_a_limit(error: LoadError) -> bool:
    """dlerror(3) has no number, but may end with the text of one. Of what can't be mapped, for
    whatever reason, glibc tells none: beside a limit, `noexec` is the one.
    """
    if error.why.endswith("failed to map segment from shared object"):
        return not os.statvfs(error.path).f_flag & os.ST_NOEXEC
    return error.why.endswith(tuple(os.strerror(code) for code in LIMITS))


def start(plan: Plan, libc: Libc, krun: Krun, init_file: Secret, root: str) -> NoReturn:
    """Start the guest. Returns only by an exception; else the process ends with its status.

    `init_file` is the file for libkrun's init, `root` the directory that is the guest's root.
    Raises VmError if libkrun refuses.
    """
    # libkrun and what it loads take settings from variables, and must find none of the caller's.
    libc.clearenv()
    guest, features = plan.config.guest, plan.facts.libraries.features
    try:
        libc.setenv(b"RUST_LOG", libkrun.LOG_FILTER, 1)
        krun.krun_init_log(descriptors.LOG, libkrun.LOG_LEVEL_ERROR, libkrun.LOG_STYLE_NEVER, 0)
        context = Context(krun, features)
        context.set_vm_config(guest.vcpus, guest.memory_mib)
        context.set_rlimits(guest.rlimits)
        # Without a sandbox it is ROOT_PATH itself, which only libkrun can keep whole.
        context.set_root(os.fsencode(root), read_only=plan.confinement is None)
        if features.krun_fs_add_overlay_file:  # else it is in the root already
            context.add_file(INIT_FILE, init_file.reveal().encode())
        if features.krun_add_virtio_console_default:  # else the guest's console takes 0, 1 and 2
            descriptors.send_stderr_to_the_log()
            context.set_console(0, 1, descriptors.GUEST_STDERR)
        if plan.user_network is None:
            context.set_network(plan.host_port, plan.config.policy.guest_port, plan.egress_cidrs)
        else:
            context.set_card(descriptors.CARD, plan.user_network.guest_mac)
        context.start_enter()
    except KrunError as error:
        raise VmError(
            "the VM could not be created",
            plan.config.files.root_path,
            str(error),
            "--console shows libkrun's own log",
        ) from None
    raise OSError(errno.EINVAL, "krun_start_enter: it has returned")


class Context:
    """One VM being configured: libkrun's generations behind one interface.

    Each method raises KrunError. Nothing is started before `start_enter`, which does not return
    unless it fails.
    """

    def __init__(self, krun: Krun, features: Features) -> None:
        self._krun = krun
        self._features = features
        self._id = krun.krun_create_ctx()
        # libkrun keeps the pointer, not the bytes.
        self._kept: list[bytes] = []

    def set_vm_config(self, vcpus: int, ram_mib: int) -> None:
        self._krun.krun_set_vm_config(self._id, vcpus, ram_mib)

    def set_rlimits(self, rlimits: Sequence[Rlimit]) -> None:
        """libkrun's init sets them. It leaves them in the app's environment, as KRUN_RLIMITS."""
        texts = [f"{RLIMITS[limit.name]}={limit.soft}:{limit.hard}" for limit in rlimits]
        self._krun.krun_set_rlimits(self._id, _strings(texts))

    def set_root(self, path: bytes, *, read_only: bool) -> None:
        if self._features.krun_add_virtiofs3:
            self._krun.krun_add_virtiofs3(self._id, ROOT_TAG, path, 0, read_only)
        else:
            self._krun.krun_set_root(self._id, path)

    def add_file(self, path: str, data: bytes) -> None:
        """A file in memory that only the guest's first look-up finds, readable by root alone."""
        self._kept.append(data)
        self._krun.krun_fs_add_overlay_file(
            self._id, ROOT_TAG, path.encode(), data, len(data), 0o100600, True
        )

    def set_console(self, stdin: int, stdout: int, stderr: int) -> None:
        if self._features.krun_disable_implicit_console:
            self._krun.krun_disable_implicit_console(self._id)
        self._krun.krun_add_virtio_console_default(self._id, stdin, stdout, stderr)

    def set_network(self, host_port: int, guest_port: int, egress: Sequence[str]) -> None:
        """TSI for IP sockets alone, one mapped port, and what the library's own policy allows."""
        if self._features.krun_add_vsock:
            self._disable_implicit_vsock()
            self._krun.krun_add_vsock(self._id, TSI_HIJACK_INET)
        self._krun.krun_set_port_map(self._id, _strings([f"{host_port}:{guest_port}"]))
        if self._features.krun_set_egress_policy:
            self._krun.krun_set_egress_policy(self._id, _strings(egress), None, None)

    def set_card(self, descriptor: int, mac: bytes) -> None:
        """A network card whose frames go by a connected stream socket, and no TSI."""
        self._disable_implicit_vsock()
        self._krun.krun_add_net_unixstream(
            self._id, None, descriptor, (c_uint8 * len(mac))(*mac), sum(NET_FEATURES.values()), 0
        )

    def _disable_implicit_vsock(self) -> None:
        if self._features.krun_disable_implicit_vsock:
            self._krun.krun_disable_implicit_vsock(self._id)

    def start_enter(self) -> None:
        self._krun.krun_start_enter(self._id)


def _strings(texts: Sequence[str]) -> Array[c_char_p]:
    encoded = [text.encode() for text in texts]
    return (c_char_p * (len(encoded) + 1))(*encoded, None)
