"""The C library's functions that Python does not offer, or only at the price of slow imports.

The `signal` and `socket` modules of the standard library each import `enum`, which a launch
would pay for with about 3 ms.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_long,
    c_uint32,
    c_uint64,
    c_ulong,
    c_void_p,
)

from krunclient.bindings.declare import (
    ERRNO,
    ERRNO_SIZE,
    UNCHECKED_POINTER,
    UNCHECKED_STRING,
    Library,
    function,
)

SYS_OPENAT2 = 437  # the same number on every architecture
OPENAT2_TRIES = 100

# <linux/openat2.h>
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4

# <bits/sigaction.h>, <asm/signal.h>
SIG_BLOCK = 0
SIG_SETMASK = 2
SIG_DFL = 0
SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGTERM = 1, 2, 3, 9, 15

AF_INET, AF_INET6 = 2, 10
SOCK_STREAM_CLOEXEC = 0o2000001
SOL_SOCKET, SO_REUSEADDR = 1, 2
IPPROTO_IPV6, IPV6_V6ONLY = 41, 26

SFD_NONBLOCK_CLOEXEC = 0o2004000
SIGNALFD_RECORD_BYTES = 128  # sizeof(struct signalfd_siginfo); ssi_signo comes first


class OpenHow(Structure):
    """struct open_how, openat2(2)."""

    _fields_ = (("flags", c_uint64), ("mode", c_uint64), ("resolve", c_uint64))


class SignalSet(Structure):
    """sigset_t of glibc and musl on Linux: 1,024 bits."""

    _fields_ = (("words", c_ulong * (1024 // (8 * ctypes.sizeof(c_ulong)))),)

    @classmethod
    def of(cls, *signals: int) -> SignalSet:
        signal_set = cls()
        for number in signals:
            signal_set.words[0] |= 1 << (number - 1)
        return signal_set


class Libc(Library):
    # <dlfcn.h>
    RTLD_LAZY = 0x00001
    RTLD_NOW_GLOBAL = 0x00102

    @function(UNCHECKED_POINTER, c_char_p, c_int)
    def dlopen(self, path: bytes, flags: int, /) -> int | None:
        """dlopen(3). None is a failure: `dlerror` tells which."""

    @function(UNCHECKED_STRING)
    def dlerror(self) -> bytes | None:
        """dlerror(3)."""

    @function(ERRNO, c_int, c_int, c_int)
    def socket(self, family: int, kind: int, protocol: int, /) -> int:
        """socket(2)."""

    @function(ERRNO, c_int, c_int, c_int, POINTER(c_int), c_uint32)
    def setsockopt(self, descriptor: int, level: int, name: int, on: c_int, size: int, /) -> int:
        """setsockopt(2), for options that are an int."""

    @function(ERRNO, c_int, c_char_p, c_uint32)
    def bind(self, descriptor: int, address: bytes, size: int, /) -> int:
        """bind(2). The address as the bytes of a struct sockaddr."""

    @function(ERRNO, c_int, c_ulong, c_ulong, c_ulong, c_ulong)
    def prctl(self, option: int, arg2: int, arg3: int, arg4: int, arg5: int, /) -> int:
        """prctl(2)."""

    @function(ERRNO, c_int, POINTER(SignalSet), POINTER(SignalSet))
    def sigprocmask(self, how: int, new: SignalSet, old: SignalSet | None, /) -> int:
        """sigprocmask(2)."""

    @function(ERRNO, c_int, POINTER(SignalSet), c_int)
    def signalfd(self, descriptor: int, mask: SignalSet, flags: int, /) -> int:
        """signalfd(2): a new descriptor where `descriptor` is -1."""

    @function(ERRNO_SIZE, c_int, c_void_p)
    def signal(self, number: int, handler: int | None, /) -> int:
        """signal(2). The former handler."""

    @function(ERRNO, c_long, c_int, c_char_p, POINTER(OpenHow), c_ulong)
    def syscall(self, number: int, directory: int, path: bytes, how: OpenHow, size: int, /) -> int:
        """syscall(2), as openat2(2) needs it."""

    @function(ERRNO)
    def clearenv(self) -> int:
        """clearenv(3)."""

    @function(ERRNO, c_char_p, c_char_p, c_int)
    def setenv(self, name: bytes, value: bytes, overwrite: int, /) -> int:
        """setenv(3)."""


def load() -> Libc:
    """The C library that Python itself runs on."""
    return Libc(ctypes.CDLL(None, use_errno=True))


def openat2(libc: Libc, directory: int, path: bytes, flags: int, resolve: int) -> int:
    """Open a path below a directory. Raises OSError. openat2(2), Linux 5.6."""
    how = OpenHow(flags, 0, resolve)
    for _ in range(OPENAT2_TRIES):
        try:
            return libc.syscall(SYS_OPENAT2, directory, path, how, ctypes.sizeof(how))
        except BlockingIOError as error:
            # EAGAIN: something was renamed somewhere while a `..` was resolved.
            last = error
    raise last
