"""The C library's functions that Python does not offer, or only at the price of slow imports.

The `signal` and `socket` modules of the standard library each import `enum`, which a launch
would pay for with about 3 ms.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Array,
    Structure,
    c_char_p,
    c_int,
    c_size_t,
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.arch import Architecture

OPENAT2_TRIES = 100

# <linux/openat2.h>
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

# <bits/sigaction.h>, <asm/signal.h>
SIG_BLOCK = 0
SIG_SETMASK = 2
SIG_DFL, SIG_IGN = 0, 1
SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGTERM, SIGCHLD = 1, 2, 3, 9, 15, 17
SIGWINCH = 28
STOP_SIGNALS = (SIGHUP, SIGINT, SIGQUIT, SIGTERM)

# <sys/socket.h> and <netinet/in.h>
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
SOCK_STREAM, SOCK_DGRAM, SOCK_CLOEXEC, SOCK_NONBLOCK = 1, 2, 0o2000000, 0o4000
SOL_SOCKET, SO_REUSEADDR, SO_REUSEPORT = 1, 2, 15
SO_KEEPALIVE, SO_SNDBUFFORCE = 9, 32
IPPROTO_TCP, IPPROTO_IPV6, IPV6_V6ONLY = 6, 41, 26
# <linux/tcp.h>, with the place of tcpi_bytes_acked in struct tcp_info
TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_INFO, TCP_USER_TIMEOUT = 4, 5, 11, 18
BYTES_ACKED = slice(120, 128)
AF_NETLINK = 16  # <linux/socket.h>
SOCKADDR_BYTES = 128  # struct sockaddr_storage
SHUT_RDWR = 2
SO_SNDTIMEO, MSG_DONTWAIT, MSG_NOSIGNAL = 21, 0x40, 0x4000
CLOSE_RANGE_CLOEXEC = 4  # <linux/close_range.h>, Linux 5.11

# <linux/sched.h>, <sys/mount.h>
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
# <linux/mount.h>, <fcntl.h>
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

# <sys/resource.h>
RLIMITS = {
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}  # fmt: skip

# struct rusage: seconds and microseconds of user and system time, then the peak in KiB
RUSAGE_LONGS = 18
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

    @classmethod
    def full(cls) -> SignalSet:
        return cls.of(*range(1, 65))


class MountAttributes(Structure):
    """struct mount_attr, mount_setattr(2)."""

    _fields_ = (
        ("set", c_uint64),
        ("clear", c_uint64),
        ("propagation", c_uint64),
        ("user_namespace", c_uint64),
    )


class ResourceLimit(Structure):
    """struct rlimit, setrlimit(2)."""

    _fields_ = (("soft", c_ulong), ("hard", c_ulong))


class CapabilityHeader(Structure):
    """struct __user_cap_header_struct, capset(2). `pid` 0 is the caller."""

    _fields_ = (("version", c_uint32), ("pid", c_int))


class CapabilitySets(Structure):
    """Two structs __user_cap_data_struct: capabilities 0 to 31, and from 32 on."""

    _fields_ = (("words", c_uint32 * 6),)


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

    @function(ERRNO, c_int, c_int, c_int, c_void_p, POINTER(c_uint32))
    def getsockopt(
        self, descriptor: int, level: int, name: int, value: object, size: c_uint32, /
    ) -> int:
        """getsockopt(2)."""

    @function(ERRNO, c_int, c_int)
    def shutdown(self, descriptor: int, how: int, /) -> int:
        """shutdown(2)."""

    @function(ERRNO, c_int, c_char_p, c_uint32)
    def bind(self, descriptor: int, address: bytes, size: int, /) -> int:
        """bind(2). The address as the bytes of a struct sockaddr."""

    @function(ERRNO, c_int, c_char_p, c_uint32)
    def connect(self, descriptor: int, address: bytes, size: int, /) -> int:
        """connect(2). The address as the bytes of a struct sockaddr."""

    @function(ERRNO, c_int, c_int)
    def listen(self, descriptor: int, backlog: int, /) -> int:
        """listen(2)."""

    @function(ERRNO, c_int, c_void_p, POINTER(c_uint32), c_int)
    def accept4(self, descriptor: int, address: None, size: None, flags: int, /) -> int:
        """accept4(2), without the peer's address."""

    @function(ERRNO, c_int, c_int, c_int, POINTER(c_int))
    def socketpair(self, family: int, kind: int, protocol: int, pair: Array[c_int], /) -> int:
        """socketpair(2)."""

    @function(ERRNO_SIZE, c_int, c_char_p, c_size_t, c_int)
    def send(self, descriptor: int, data: bytes, size: int, flags: int, /) -> int:
        """send(2)."""

    @function(ERRNO_SIZE, c_int, c_void_p, c_size_t, c_int)
    def recv(self, descriptor: int, data: object, size: int, flags: int, /) -> int:
        """recv(2)."""

    @function(ERRNO, c_int, c_void_p, POINTER(c_uint32))
    def getsockname(self, descriptor: int, address: object, size: c_uint32, /) -> int:
        """getsockname(2)."""

    @function(ERRNO, c_int, c_void_p, POINTER(c_uint32))
    def getpeername(self, descriptor: int, address: object, size: c_uint32, /) -> int:
        """getpeername(2)."""

    @function(ERRNO, c_int, c_char_p, c_void_p)
    def inet_pton(self, family: int, text: bytes, address: object, /) -> int:
        """inet_pton(3): 1 for an address of this family, 0 for a text that is none."""

    @function(ERRNO, c_int, c_ulong, c_ulong, c_ulong, c_ulong)
    def prctl(self, option: int, arg2: int, arg3: int, arg4: int, arg5: int, /) -> int:
        """prctl(2)."""

    @function(ERRNO, c_int, POINTER(SignalSet), POINTER(SignalSet))
    def sigprocmask(self, how: int, new: SignalSet, old: SignalSet | None, /) -> int:
        """sigprocmask(2)."""

    @function(ERRNO, c_int, POINTER(SignalSet), c_int)
    def signalfd(self, descriptor: int, mask: SignalSet, flags: int, /) -> int:
        """signalfd(2): a new descriptor if `descriptor` is -1."""

    @function(ERRNO_SIZE, c_int, c_void_p)
    def signal(self, number: int, handler: int | None, /) -> int:
        """signal(2). The former handler."""

    @function(ERRNO, c_int, POINTER(c_int), c_int, c_void_p)
    def wait4(self, process: int, status: c_int, options: int, usage: object, /) -> int:
        """wait4(2). Python's imports a module, for which a process may be short of descriptors."""

    @function(ERRNO)
    def pause(self) -> int:
        """pause(2). Always raises OSError, with EINTR."""

    @function(ERRNO)
    def clearenv(self) -> int:
        """clearenv(3)."""

    @function(ERRNO, c_char_p, c_char_p, c_int)
    def setenv(self, name: bytes, value: bytes, overwrite: int, /) -> int:
        """setenv(3)."""

    @function(ERRNO, c_int)
    def unshare(self, flags: int, /) -> int:
        """unshare(2)."""

    @function(ERRNO, c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
    def mount(
        self,
        source: bytes | None,
        target: bytes,
        kind: bytes | None,
        flags: int,
        options: bytes | None,
        /,
    ) -> int:
        """mount(2)."""

    @function(ERRNO, c_char_p, c_int)
    def umount2(self, target: bytes, flags: int, /) -> int:
        """umount2(2)."""

    @function(ERRNO, c_int, POINTER(ResourceLimit))
    def getrlimit(self, resource: int, limit: ResourceLimit, /) -> int:
        """getrlimit(2)."""

    @function(ERRNO, c_int, POINTER(ResourceLimit))
    def setrlimit(self, resource: int, limit: ResourceLimit, /) -> int:
        """setrlimit(2)."""

    @function(ERRNO, POINTER(CapabilityHeader), POINTER(CapabilitySets))
    def capset(self, header: CapabilityHeader, sets: CapabilitySets, /) -> int:
        """capset(2)."""

    @function(ERRNO, c_int, c_ulong, c_void_p)
    def ioctl(self, descriptor: int, request: int, argument: object, /) -> int:
        """ioctl(2), for requests that take a pointer."""

    @function(ERRNO, c_int, c_char_p, POINTER(OpenHow), c_size_t, syscall=True)
    def openat2(self, directory: int, path: bytes, how: OpenHow, size: int, /) -> int:
        """openat2(2), Linux 5.6."""

    @function(ERRNO, c_int, c_char_p, c_uint32, POINTER(MountAttributes), c_size_t, syscall=True)
    def mount_setattr(
        self, directory: int, path: bytes, flags: int, attributes: MountAttributes, size: int, /
    ) -> int:
        """mount_setattr(2), Linux 5.12."""

    @function(ERRNO, c_uint32, c_uint32, c_uint32, syscall=True)
    def close_range(self, first: int, last: int, flags: int, /) -> int:
        """close_range(2), Linux 5.9."""

    @function(ERRNO, c_int, c_int, c_uint32, syscall=True)
    def pidfd_getfd(self, process: int, descriptor: int, flags: int, /) -> int:
        """pidfd_getfd(2), Linux 5.6."""

    @function(ERRNO, c_char_p, c_char_p, syscall=True)
    def pivot_root(self, new_root: bytes, put_old: bytes, /) -> int:
        """pivot_root(2)."""

    @function(ERRNO, c_uint32, c_uint32, c_void_p, syscall=True)
    def seccomp(self, operation: int, flags: int, arguments: object, /) -> int:
        """seccomp(2)."""

    @function(ERRNO, c_void_p, c_size_t, c_uint32, syscall=True)
    def landlock_create_ruleset(self, attributes: object, size: int, flags: int, /) -> int:
        """landlock_create_ruleset(2), Linux 5.13."""

    @function(ERRNO, c_int, c_int, c_void_p, c_uint32, syscall=True)
    def landlock_add_rule(self, ruleset: int, kind: int, attributes: object, flags: int, /) -> int:
        """landlock_add_rule(2), Linux 5.13."""

    @function(ERRNO, c_int, c_uint32, syscall=True)
    def landlock_restrict_self(self, ruleset: int, flags: int, /) -> int:
        """landlock_restrict_self(2), Linux 5.13."""


def load(architecture: Architecture) -> Libc:
    """The C library that Python itself runs on."""
    return Libc(ctypes.CDLL(None, use_errno=True), architecture.syscalls)


def openat2(libc: Libc, directory: int, path: bytes, flags: int, resolve: int) -> int:
    """Open a path below a directory. Raises OSError. openat2(2), Linux 5.6."""
    how = OpenHow(flags, 0, resolve)
    for _ in range(OPENAT2_TRIES):
        try:
            return libc.openat2(directory, path, how, ctypes.sizeof(how))
        except BlockingIOError as error:
            # EAGAIN: something was renamed somewhere while a `..` was resolved.
            last = error
    raise last


def set_socket_option(libc: Libc, descriptor: int, level: int, name: int, value: int) -> None:
    """Set an option of a socket that is an int. Raises OSError."""
    libc.setsockopt(descriptor, level, name, c_int(value), ctypes.sizeof(c_int))


def set_send_timeout(libc: Libc, descriptor: int, microseconds: int) -> None:
    """Bound how long a send or a connect blocks, below a second. Raises OSError. socket(7)."""
    words = (c_int * 4)(0, 0, microseconds, 0)  # struct timeval, of two longs
    on = ctypes.cast(words, POINTER(c_int)).contents
    libc.setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, on, ctypes.sizeof(words))


def sockaddr_of(get: Callable[[int, object, c_uint32], int], descriptor: int) -> bytes:
    """The struct sockaddr that getsockname(2) or getpeername(2) has of a socket. Raises OSError."""
    buffer, size = ctypes.create_string_buffer(SOCKADDR_BYTES), c_uint32(SOCKADDR_BYTES)
    get(descriptor, buffer, size)
    return buffer.raw[: size.value]


def socket_pair(libc: Libc) -> tuple[int, int]:
    """Two connected stream sockets. Raises OSError. socketpair(2)."""
    pair = (c_int * 2)()
    libc.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)
    return pair[0], pair[1]
