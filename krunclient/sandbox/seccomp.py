"""The seccomp filters of VMM and passt: what they refuse, and what they hand to the supervisor.

Documentation/userspace-api/seccomp_filter.rst of the kernel. The filter is a program of classic
BPF; `assemble` makes it as data, so that tests can run it without installing it.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from ctypes import Structure, c_char_p, c_ushort

from krunclient.bindings.libc import (
    AF_NETLINK,
    CLONE_NEWUSER,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    SIGCHLD,
    SIGKILL,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SOL_SOCKET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc

# <linux/seccomp.h>
SET_MODE_FILTER = 1
FILTER_FLAG_NEW_LISTENER = 1 << 3
RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_ALLOW = 0x7FFF0000
# Offsets in struct seccomp_data, of the low word: every architecture here is little-endian.
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16

# <linux/bpf_common.h>
LOAD, JUMP_EQUAL, JUMP_GREATER_OR_EQUAL, RETURN, AND = 0x20, 0x15, 0x35, 0x06, 0x54
JUMP_ALWAYS = 0x05  # as many instructions as the value says
EVERY_BIT = 0xFFFFFFFF

# <bits/socket.h>, <asm/socket.h>, <netinet/tcp.h>
MSG_FASTOPEN, SO_KEEPALIVE, TCP_NODELAY = 0x20000000, 9, 1
# <linux/sched.h>: a thread that shares its descriptors and its place in the tree with the others.
THREAD_FLAGS = 0x00010000 | 0x00000400 | 0x00000200  # CLONE_THREAD, CLONE_FILES, CLONE_FS
CLOSE_RANGE_UNSHARE = 1 << 1
# <fcntl.h>: descriptors and their flags; no locks, no leases, no signals to others.
FCNTLS = {
    "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_DUPFD_CLOEXEC": 1030,
}  # fmt: skip
# <linux/prctl.h>: names of threads and of memory, and a look at what there is.
PRCTLS = {"PR_GET_DUMPABLE": 3, "PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_SET_VMA": 0x53564D41}
SET_ID_BITS = (0o2000, 0o4000, 0o6000)
# All requests to KVM have its type in the second byte, <linux/kvm.h>.
IOCTL_TYPE, KVM_TYPE = 0xFF00, 0xAE00
KVM_CREATE_GUEST_MEMFD = 0xC040AED4  # memory that no limit counts
# <asm-generic/ioctls.h>: a look at the terminal, and what Rust does to its descriptors.
IOCTLS = {
    "TCGETS": 0x5401, "TCGETS2": 0x802C542A, "TIOCGWINSZ": 0x5413, "FIONREAD": 0x541B,
    "FIONBIO": 0x5421, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451,
}  # fmt: skip
# libkrun sets a terminal to raw mode. It is told that it has, and the terminal stays as it is.
IOCTLS_IGNORED = {
    "TCSETS": 0x5402, "TCSETSW": 0x5403, "TCSETSF": 0x5404,
    "TCSETS2": 0x402C542B, "TCSETSW2": 0x402C542C, "TCSETSF2": 0x402C542D,
}  # fmt: skip

# The supervisor makes these calls in the VMM's place, if its policy allows them.
SUPERVISED = ("bind", "connect", "listen")
# And these in the place of passt, which gets its sockets and its connections from the supervisor.
SUPERVISED_OF_PASST = (*SUPERVISED, "accept4", "getsockname")  # and all of its sockets but one kind
# What passt does to confine itself, which it does before it reads a frame of the guest's.
SELF_CONFINEMENT = (
    "execve", "mount", "umount2", "pivot_root", "unshare", "setns", "seccomp", "setpriority",
    "socketpair",
)  # fmt: skip
# <asm-generic/socket.h>, <linux/tcp.h>: buffers, windows, lingering, and how far a peek goes.
SOCKET_OPTIONS_OF_PASST = {
    "SO_SNDBUF": 7, "SO_RCVBUF": 8, "SO_KEEPALIVE": 9, "SO_LINGER": 13, "SO_RCVLOWAT": 18,
    "SO_PEEK_OFF": 42,
}  # fmt: skip
TCP_OPTIONS_OF_PASST = {
    "TCP_NODELAY": 1, "TCP_MAXSEG": 2, "TCP_WINDOW_CLAMP": 10, "TCP_QUICKACK": 12,
}  # fmt: skip
# Both are set on listening sockets, which are the supervisor's. On one that is connected, they
# decide who may have the port after it.
SOCKET_OPTIONS_IGNORED = (SO_REUSEADDR, SO_REUSEPORT)
# <fcntl.h>: and the size of a pipe, and seals of memory.
FCNTLS_OF_PASST = {"F_SETPIPE_SZ": 1031, "F_GETPIPE_SZ": 1032, "F_ADD_SEALS": 1033}
# <asm-generic/sockios.h>, <asm-generic/ioctls.h>: signals to others.
IOCTLS_THAT_SIGNAL = {"FIOSETOWN": 0x8901, "SIOCSPGRP": 0x8902, "FIOASYNC": 0x5452}
# <linux/netlink.h>: an unprivileged look at the host's interfaces.
NETLINK_ROUTE, SOL_NETLINK, NETLINK_GET_STRICT_CHK = 0, 270, 12

# What a VMM never does, by the reason to refuse it.
REFUSED = {
    "starting programs and processes": ("fork", "vfork", "execve", "execveat"),
    "reaching into other processes": (
        "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "ptrace",
        "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "kcmp",
        "process_madvise", "process_mrelease", "migrate_pages", "move_pages",
    ),
    "changing what is mounted and which namespaces there are": (
        "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen",
        "fsconfig", "fsmount", "fspick", "mount_setattr", "setns", "unshare", "swapon",
        "swapoff", "quotactl", "quotactl_fd", "statmount", "listmount", "open_tree_attr",
    ),
    "files past the mount namespace": ("open_by_handle_at", "fanotify_init", "lookup_dcookie"),
    "flags of files that no guest sets": ("setxattrat", "file_setattr"),
    "system calls past this filter": (
        "io_uring_setup", "io_uring_enter", "io_uring_register", "seccomp",
    ),
    "large and rarely used parts of the kernel": (
        "bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl",
        "memfd_secret", "personality", "iopl", "ioperm", "modify_ldt",
    ),
    "objects that all processes of a user share": (
        "shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget",
        "semop", "semtimedop", "semctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive",
        "mq_notify", "mq_getsetattr",
    ),
    "memory and slots that no limit counts": (
        "memfd_create", "io_setup", "inotify_init", "inotify_init1", "vmsplice", "tee",
    ),
    "the claim of the overlay": ("flock",),
    "the host itself": (
        "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot",
        "sethostname", "setdomainname", "acct", "settimeofday", "clock_settime", "clock_adjtime",
        "adjtimex", "syslog", "vhangup",
    ),
    "its own limits": (
        "setrlimit", "setpriority", "sched_setattr", "sched_setscheduler", "sched_setparam",
        "ioprio_set",
    ),
    "UNIX sockets": ("socketpair",),
}  # fmt: skip

# All that a thread needs that only waits, and Python needs to come to that. Reading the clock is a
# system call where programs can't do it by themselves: with clocksource hpet, acpi_pm or xen.
WAITING = (
    "futex", "pause", "ppoll", "restart_syscall", "exit_group", "mmap", "munmap", "mprotect",
    "madvise", "brk", "clock_gettime",
)  # fmt: skip

# What a guest that runs and serves makes its VMM do most, of the calls whose arguments are looked
# at. The kernel asks no filter about a call that it always allows.
FREQUENT = ("ioctl", "sendto", "sendmsg", "fcntl")

# Where a mode is among the arguments of the calls that set one.
MODE_ARGUMENTS = {
    "chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "open": 2, "creat": 1, "openat": 3,
    "mknod": 1, "mknodat": 2,
}  # fmt: skip


_SOCK_FILTER = struct.Struct("=HBBI")  # struct sock_filter


class Program(Structure):
    """struct sock_fprog."""

    _fields_ = (("length", c_ushort), ("filter", c_char_p))


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """For a jump, how many instructions to skip if true and if false, each at most 255."""
    return _SOCK_FILTER.pack(code, if_true, if_false, value)


def assemble(
    architecture: Architecture, pid: int, *, set_id_bits: bool, sockets: bool
) -> tuple[bytes, ...]:
    """The filter for a VMM with this pid, on this architecture.

    Without `set_id_bits` no file can be made set-user-ID or set-group-ID. Without `sockets` none
    can be made.
    """
    program = _Rules(architecture)
    for name in SUPERVISED:
        program.rule(name, _returns(RET_USER_NOTIF) if sockets else _refuses(errno.EACCES))
    program.rule("socket", *(_only_tcp() if sockets else [_refuses(errno.EACCES)]))
    program.confine(pid)
    program.allow("kill", 0, (pid,))
    program.allow("clone", 0, (THREAD_FLAGS,), mask=THREAD_FLAGS)
    program.refuse("close_range", 2, (CLOSE_RANGE_UNSHARE,), mask=CLOSE_RANGE_UNSHARE)
    program.allow("prlimit64", 2, (0,))  # reading a limit is no harm
    program.allow("prctl", 0, PRCTLS.values())
    program.allow("fcntl", 1, FCNTLS.values())
    program.rule(
        "ioctl",
        *_if_in(1, (KVM_CREATE_GUEST_MEMFD,), RET_ERRNO | errno.EPERM, None),
        *_if_in(1, (KVM_TYPE,), RET_ALLOW, None, mask=IOCTL_TYPE),
        *_if_in(1, IOCTLS_IGNORED.values(), RET_ERRNO, None),
        *_if_in(1, IOCTLS.values(), RET_ALLOW, errno.EPERM),
    )
    program.rule("setsockopt", *_only_harmless_options())
    if not set_id_bits:
        for name, argument in MODE_ARGUMENTS.items():
            program.refuse(name, argument, SET_ID_BITS, mask=SET_ID_BITS[-1])
        program.rule("openat2", _refuses(errno.ENOSYS))  # its mode is out of sight
    return program.end(RET_ALLOW)


def assemble_for_passt(
    architecture: Architecture, pid: int, *, is_dumpable: bool
) -> tuple[bytes, ...]:
    """The filter for passt. It stands beside passt's own, which lets through what passt needs.

    With `is_dumpable` passt can't close itself to its supervisor, ptrace(2).
    """
    program = _Rules(architecture)
    program.rule(
        "socket",
        _load(0),
        _instruction(JUMP_EQUAL, AF_NETLINK, if_false=3),
        _load(2),
        _instruction(JUMP_EQUAL, NETLINK_ROUTE, if_false=1),
        _returns(RET_ALLOW),
        _returns(RET_USER_NOTIF),
    )
    for name in SUPERVISED_OF_PASST:
        program.rule(name, _returns(RET_USER_NOTIF))
    program.rule("accept", _refuses(errno.EPERM))
    # It has a user namespace already, and is told that it has made one, or entered that of a child
    # (2026): to do so would undo that it dies with the supervisor.
    program.rule("unshare", *_if_in(0, (CLONE_NEWUSER,), RET_ERRNO, 0))
    program.rule("setns", *_if_in(1, (CLONE_NEWUSER,), RET_ERRNO, errno.EPERM))
    # That child dies with its parent; nobody can wish for less.
    death = [*_if_in(1, (SIGKILL,), RET_ALLOW, None), _returns(RET_ERRNO)]
    program.rule(
        "prctl",
        _load(0),
        _instruction(JUMP_EQUAL, PR_SET_PDEATHSIG, if_false=len(death)),
        *death,
        *_if_in(0, (PR_SET_DUMPABLE,) if is_dumpable else (), RET_ERRNO, 0),
    )
    program.allow("clone", 0, (CLONE_NEWUSER | SIGCHLD,))
    program.allow("fcntl", 1, (*FCNTLS.values(), *FCNTLS_OF_PASST.values()))
    program.refuse("ioctl", 1, tuple(IOCTLS_THAT_SIGNAL.values()))
    program.confine(pid, SELF_CONFINEMENT)
    program.rule(
        "setsockopt",
        *_options(
            {
                SOL_SOCKET: SOCKET_OPTIONS_OF_PASST.values(),
                IPPROTO_TCP: TCP_OPTIONS_OF_PASST.values(),
                IPPROTO_IPV6: (IPV6_V6ONLY,),
                SOL_NETLINK: (NETLINK_GET_STRICT_CHK,),
            }
        ),
    )
    return program.end(RET_ALLOW)


def assemble_waiting(architecture: Architecture) -> tuple[bytes, ...]:
    """The filter for a thread that only waits: any other call ends the process."""
    program = _Rules(architecture)
    for name in WAITING:
        program.rule(name, _returns(RET_ALLOW))
    return program.end(RET_KILL_PROCESS)


class _Rules:
    """A program being written: what is decided per system call, the frequent ones first."""

    def __init__(self, architecture: Architecture) -> None:
        self._syscalls = architecture.syscalls
        self._frequent: list[bytes] = []
        self._others: list[bytes] = []
        self._head = [
            _instruction(LOAD, ARCHITECTURE),
            _instruction(JUMP_EQUAL, architecture.audit_arch, if_true=1),
            _returns(RET_KILL_PROCESS),
            _instruction(LOAD, NUMBER),
        ]
        if architecture.foreign_syscalls is not None:
            first = architecture.foreign_syscalls
            self._head += [
                _instruction(JUMP_GREATER_OR_EQUAL, first, if_false=1),
                _returns(RET_KILL_PROCESS),
            ]

    def rule(self, name: str, *body: bytes) -> None:
        """Raises KeyError for a name that no architecture knows: it would refuse nothing."""
        number = self._syscalls[name]
        if number is not None:
            skip = _instruction(JUMP_EQUAL, number, if_false=len(body))
            (self._frequent if name in FREQUENT else self._others).extend((skip, *body))

    def allow(
        self, name: str, argument: int, values: Collection[int], *, mask: int = EVERY_BIT
    ) -> None:
        """Allow the call if an argument is one of these, else refuse it with EPERM."""
        self.rule(name, *_if_in(argument, values, RET_ALLOW, errno.EPERM, mask=mask))

    def refuse(
        self,
        name: str,
        argument: int,
        values: Sequence[int],
        error: int = errno.EPERM,
        *,
        mask: int = EVERY_BIT,
    ) -> None:
        """Refuse the call if an argument is one of these, else allow it."""
        self.rule(name, *_if_in(argument, values, RET_ERRNO | error, 0, mask=mask))

    def confine(self, pid: int, but: Collection[str] = ()) -> None:
        """What no process behind these walls does: none of REFUSED `but` these, no connection past
        connect(2).
        """
        refused = [name for names in REFUSED.values() for name in names if name not in but]
        numbers = [number for name in refused if (number := self._syscalls[name]) is not None]
        self._others += _one_of(numbers)
        self._others += [_instruction(JUMP_ALWAYS, 1), _refuses(errno.EPERM)]
        # With ENOSYS the C library falls back to clone, whose flags a filter can see.
        self.rule("clone3", _refuses(errno.ENOSYS))
        self.allow("tgkill", 0, (pid,))
        self.allow("sched_setaffinity", 0, (0,))
        # A connection by the first packet.
        for name, argument in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
            self.refuse(name, argument, (MSG_FASTOPEN,), errno.EACCES, mask=MSG_FASTOPEN)

    def end(self, action: int) -> tuple[bytes, ...]:
        return (*self._head, *self._frequent, *self._others, _returns(action))


def install(libc: Libc, program: Sequence[bytes]) -> int:
    """Put this thread, and those that it starts, under the filter for good.

    Returns the descriptor of its notifications. Raises OSError. Needs no_new_privs; the
    notifications are Linux 5.0.
    """
    return _set_filter(libc, program, FILTER_FLAG_NEW_LISTENER)


def install_unsupervised(libc: Libc, program: Sequence[bytes]) -> None:
    """As `install`, for a filter that notifies nobody."""
    _set_filter(libc, program, 0)


def _set_filter(libc: Libc, program: Sequence[bytes], flags: int) -> int:
    filled = Program(len(program), b"".join(program))
    return libc.seccomp(SET_MODE_FILTER, flags, ctypes.byref(filled))


def _returns(action: int) -> bytes:
    return _instruction(RETURN, action)


def _refuses(error: int) -> bytes:
    return _returns(RET_ERRNO | error)


def _load(argument: int) -> bytes:
    """The low word of an argument: what the kernel takes of an int."""
    return _instruction(LOAD, FIRST_ARGUMENT + 8 * argument)


def _if_in(
    argument: int,
    values: Collection[int],
    action: int,
    otherwise: int | None,
    *,
    mask: int = EVERY_BIT,
) -> list[bytes]:
    """`action` if the bits of `mask` in an argument are one of the values; else the errno
    `otherwise`, 0 to allow, None to go on with what comes next.
    """
    if otherwise is None:
        none_of_them = _instruction(JUMP_ALWAYS, 1)
    else:
        none_of_them = _returns(RET_ERRNO | otherwise if otherwise else RET_ALLOW)
    masked = [_instruction(AND, mask)] if mask != EVERY_BIT else []
    return [_load(argument), *masked, *_one_of(values), none_of_them, _returns(action)]


def _one_of(values: Collection[int]) -> list[bytes]:
    """Skip one instruction more than these if what was loaded is one of the values."""
    return [
        _instruction(JUMP_EQUAL, value, if_true=len(values) - position)
        for position, value in enumerate(values)
    ]


def _only_tcp() -> list[bytes]:
    """socket(AF_INET or AF_INET6, SOCK_STREAM with any flags, 0 or IPPROTO_TCP), no other."""
    return [
        _load(0),
        _instruction(JUMP_EQUAL, 2, if_true=1),
        _instruction(JUMP_EQUAL, 10, if_false=6),
        _load(1),
        _instruction(AND, 0xF),
        _instruction(JUMP_EQUAL, 1, if_false=3),
        _load(2),
        _instruction(JUMP_EQUAL, 0, if_true=2),
        _instruction(JUMP_EQUAL, 6, if_true=1),
        _refuses(errno.EACCES),
        _returns(RET_ALLOW),
    ]


def _only_harmless_options() -> list[bytes]:
    """Nothing that leads packets another way: no device, no source route, no multicast."""
    return _options(
        {
            SOL_SOCKET: (SO_KEEPALIVE,),
            IPPROTO_TCP: (TCP_NODELAY,),
        }
    )


def _options(allowed: Mapping[int, Collection[int]]) -> list[bytes]:
    """These options of these levels, setsockopt(2), and no others. Some are ignored."""
    ignored = _if_in(2, SOCKET_OPTIONS_IGNORED, RET_ERRNO, None)
    body = [
        _load(1),
        _instruction(JUMP_EQUAL, SOL_SOCKET, if_false=len(ignored)),
        *ignored,
        _load(1),
    ]
    for level, options in allowed.items():
        of_level = _if_in(2, options, RET_ALLOW, errno.EPERM)
        body += [_instruction(JUMP_EQUAL, level, if_false=len(of_level)), *of_level]
    return [*body, _refuses(errno.EPERM)]
