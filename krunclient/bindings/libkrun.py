"""libkrun's C API, of all generations from 1.9 to 2.x, behind one interface.

Source: include/libkrun.h of each release. Which functions a library has decides what is called:

    root        krun_set_root (1.x), krun_add_virtiofs3 (1.18 and later)
    vsock       implicit (1.x), krun_add_vsock (1.17 and later)
    console     implicit (1.x), krun_add_virtio_console_default (1.16 and later)
    log         krun_set_log_level, krun_init_log (1.13 and later)
    file        krun_fs_add_overlay_file (1.19 and later)
"""

from __future__ import annotations

import os
from ctypes import (
    CDLL,
    POINTER,
    Array,
    c_bool,
    c_char_p,
    c_int,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
)

from krunclient import initconfig
from krunclient.bindings.declare import Library, MissingSymbolError, Result, function
from krunclient.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from krunclient.bindings.libc import Libc

ROOT_TAG = b"/dev/root"  # the virtiofs tag that libkrun's kernel command line mounts as root
TSI_HIJACK_INET = 1
LOG_LEVEL_OFF, LOG_LEVEL_ERROR = 0, 1
LOG_STYLE_NEVER = 2


class KrunError(Exception):
    """A function of libkrun failed: its name and the negative errno that it returned."""

    def __init__(self, function_name: str, code: int) -> None:
        super().__init__(f"{function_name}: {os.strerror(-code)}")


def _negative_is_error(name: str, result: int, _arguments: tuple[Any, ...]) -> int:
    if result < 0:
        raise KrunError(name, result)
    return result


KRUN = Result(restype=c_int32, check=_negative_is_error)
ctx_id = c_uint32
strings = POINTER(c_char_p)  # NULL-terminated


class Krun(Library):
    """The functions as the header has them. Each raises KrunError."""

    @function(KRUN)
    def krun_create_ctx(self) -> int: ...

    @function(KRUN, ctx_id, c_uint8, c_uint32)
    def krun_set_vm_config(self, context: int, vcpus: int, ram_mib: int, /) -> int: ...

    @function(KRUN, ctx_id, strings)
    def krun_set_port_map(self, context: int, port_map: Array[c_char_p], /) -> int: ...

    @function(KRUN, ctx_id)
    def krun_start_enter(self, context: int, /) -> int: ...

    @function(KRUN, c_uint32)
    def krun_set_log_level(self, level: int, /) -> int: ...

    @function(KRUN, c_int, c_uint32, c_uint32, c_uint32, optional=True)
    def krun_init_log(self, descriptor: int, level: int, style: int, options: int, /) -> int: ...

    @function(KRUN, ctx_id, c_char_p, optional=True)
    def krun_set_root(self, context: int, path: bytes, /) -> int: ...

    @function(KRUN, ctx_id, c_char_p, c_char_p, c_uint64, c_bool, optional=True)
    def krun_add_virtiofs3(
        self, context: int, tag: bytes, path: bytes, shm_size: int, read_only: bool, /
    ) -> int: ...

    @function(KRUN, ctx_id, c_char_p, c_char_p, c_char_p, c_size_t, c_uint32, c_bool, optional=True)
    def krun_fs_add_overlay_file(
        self,
        context: int,
        tag: bytes,
        path: bytes,
        data: bytes,
        size: int,
        mode: int,
        once: bool,
        /,
    ) -> int: ...

    @function(KRUN, ctx_id, optional=True)
    def krun_disable_implicit_vsock(self, context: int, /) -> int: ...

    @function(KRUN, ctx_id, c_uint32, optional=True)
    def krun_add_vsock(self, context: int, tsi_features: int, /) -> int: ...

    @function(KRUN, ctx_id, strings, strings, strings, optional=True)
    def krun_set_egress_policy(
        self, context: int, cidrs: Array[c_char_p], hosts: None, resolvers: None, /
    ) -> int: ...

    @function(KRUN, ctx_id, optional=True)
    def krun_disable_implicit_console(self, context: int, /) -> int: ...

    @function(KRUN, ctx_id, c_int, c_int, c_int, optional=True)
    def krun_add_virtio_console_default(
        self, context: int, stdin: int, stdout: int, stderr: int, /
    ) -> int: ...

    @property
    def generation(self) -> str:
        return "1.x" if self.has("krun_set_root") else "2.x"


class Context:
    """One VM being configured. Each method raises KrunError.

    Nothing is started before `start_enter`, which does not return unless it fails.
    """

    def __init__(self, krun: Krun) -> None:
        self._krun = krun
        self._id = krun.krun_create_ctx()
        # libkrun keeps the pointer, not the bytes.
        self._kept: list[bytes] = []

    def set_vm_config(self, vcpus: int, ram_mib: int) -> None:
        self._krun.krun_set_vm_config(self._id, vcpus, ram_mib)

    def set_root(self, path: bytes, *, read_only: bool) -> None:
        if self._krun.has("krun_add_virtiofs3"):
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
        if not self._krun.has("krun_add_virtio_console_default"):
            return  # the implicit console takes 0, 1 and 2
        if self._krun.has("krun_disable_implicit_console"):
            self._krun.krun_disable_implicit_console(self._id)
        self._krun.krun_add_virtio_console_default(self._id, stdin, stdout, stderr)

    def set_network(self, host_port: int, guest_port: int, egress: Sequence[str]) -> None:
        """TSI for IP sockets alone, one mapped port, and what the library's own policy allows."""
        if self._krun.has("krun_add_vsock"):
            if self._krun.has("krun_disable_implicit_vsock"):
                self._krun.krun_disable_implicit_vsock(self._id)
            self._krun.krun_add_vsock(self._id, TSI_HIJACK_INET)
        self._krun.krun_set_port_map(self._id, _strings([f"{host_port}:{guest_port}"]))
        if self._krun.has("krun_set_egress_policy"):
            self._krun.krun_set_egress_policy(self._id, _strings(egress), None, None)

    def start_enter(self) -> None:
        self._krun.krun_start_enter(self._id)


def load(libc: Libc, libkrun: str, libkrunfw: str) -> Krun:
    """Load the pair by absolute path.

    libkrunfw comes first and with RTLD_GLOBAL: libkrun opens it by soname, and finds the one
    that is loaded. libkrun is bound lazily, because builds with GPU support have undefined
    symbols of a library that is not needed here, and CDLL always binds at once.

    Raises HostError where one can't be loaded or lacks a function.
    """
    _open(libc, libkrunfw, now=True)
    handle = _open(libc, libkrun, now=False)
    try:
        krun = Krun(CDLL(libkrun, handle=handle))
        if not krun.has("krun_set_root") and not krun.has("krun_add_virtiofs3"):
            raise MissingSymbolError("krun_set_root or krun_add_virtiofs3")
    except MissingSymbolError as missing:
        raise HostError(
            "libkrun can't be used",
            libkrun,
            f"it has no function {missing}",
            "use libkrun 1.9 or later",
        ) from None
    return krun


def init_dialect(krun: Krun) -> initconfig.Dialect:
    """What the init inside this library understands."""
    if krun.generation == "2.x":
        return initconfig.RUST_INIT
    if krun.has("krun_fs_add_overlay_file"):
        return initconfig.C_INIT
    return initconfig.C_INIT_WITHOUT_ESCAPES


def _open(libc: Libc, path: str, *, now: bool) -> int:
    handle = libc.dlopen(os.fsencode(path), libc.RTLD_NOW_GLOBAL if now else libc.RTLD_LAZY)
    if handle:
        return handle
    reason = (libc.dlerror() or b"").decode("utf-8", "replace")
    raise HostError(
        "a library can't be loaded", path, reason, "give another by --libkrun and --libkrunfw"
    )


def _strings(texts: Sequence[str]) -> Array[c_char_p]:
    encoded = [text.encode() for text in texts]
    return (c_char_p * (len(encoded) + 1))(*encoded, None)
