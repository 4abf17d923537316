"""libkrun's C API, of all generations from 1.13 to 2.x.

Source: include/libkrun.h of each release. The functions that not all of them have are optional
here; which of them a library has, its Features, decides what is called:

    root        krun_set_root (1.x), krun_add_virtiofs3 (1.18 and later)
    vsock       implicit (1.x), krun_add_vsock (1.17 and later)
    card        krun_add_net_unixstream (1.16 and later)
    console     implicit (1.x), krun_add_virtio_console_default (1.16 and later)
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

from krunclient.bindings.declare import Library, MissingSymbolError, Result, function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from krunclient.bindings.libc import Libc

ROOT_TAG = b"/dev/root"  # the virtiofs tag that libkrun's kernel command line mounts as root
TSI_HIJACK_INET = 1
# What passt takes of virtio-net: checksums and segments that the other side is to complete.
NET_FEATURES = {
    "CSUM": 1 << 0, "GUEST_CSUM": 1 << 1, "GUEST_TSO4": 1 << 7, "GUEST_UFO": 1 << 10,
    "HOST_TSO4": 1 << 11, "HOST_UFO": 1 << 14,
}  # fmt: skip
LOG_LEVEL_ERROR = 1
LOG_STYLE_NEVER = 2
# RUST_LOG of the crate env_logger. At debug level libkrun's VMM tells whether a status is the
# app's; its crate was renamed after 1.x.
LOG_FILTER = b"error,vmm=debug,krun_vmm=debug"


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
    def krun_set_rlimits(self, context: int, rlimits: Array[c_char_p], /) -> int: ...

    @function(KRUN, ctx_id, strings)
    def krun_set_port_map(self, context: int, port_map: Array[c_char_p], /) -> int: ...

    @function(KRUN, ctx_id)
    def krun_start_enter(self, context: int, /) -> int: ...

    @function(KRUN, c_int, c_uint32, c_uint32, c_uint32)
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

    @function(KRUN, ctx_id, c_char_p, c_int, POINTER(c_uint8), c_uint32, c_uint32, optional=True)
    def krun_add_net_unixstream(
        self,
        context: int,
        path: None,
        descriptor: int,
        mac: Array[c_uint8],
        features: int,
        flags: int,
        /,
    ) -> int: ...

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


class LoadError(Exception):
    """A library can't be loaded: its path, and why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why


def load(libc: Libc, libkrun: str, libkrunfw: str) -> Krun:
    """Load the pair by absolute path.

    libkrunfw comes first and with RTLD_GLOBAL: libkrun opens it by soname, and finds the one
    that is loaded. libkrun is bound lazily, because builds with GPU support have undefined
    symbols of a library that is not needed here, and CDLL always binds at once.

    Raises LoadError if one can't be loaded or lacks a function.
    """
    _open(libc, libkrunfw, libc.RTLD_NOW_GLOBAL)
    handle = _open(libc, libkrun, libc.RTLD_LAZY)
    krun = Krun(CDLL(libkrun, handle=handle))
    try:
        krun.require()
    except MissingSymbolError as missing:
        raise LoadError(libkrun, f"it has no function {missing}") from None
    return krun


def _open(libc: Libc, path: str, flags: int) -> int:
    dlerror = libc.dlerror  # looked up first: to look it up takes the last error away, dlerror(3)
    handle = libc.dlopen(os.fsencode(path), flags)
    if not handle:
        why = os.fsdecode(dlerror() or b"").removeprefix(f"{path}: ")
        raise LoadError(path, why)
    return handle
