"""The seccomp filter of the VMM: what it refuses, and what it hands to the supervisor.

Documentation/userspace-api/seccomp_filter.rst of the kernel. The filter is a program of classic
BPF; `assemble` makes it as data, so that tests can run it without installing it.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from ctypes import Structure, c_char_p, c_ushort

from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from krunclient.bindings.libc import Libc

# <linux/seccomp.h>
SET_MODE_FILTER = 1
FILTER_FLAG_NEW_LISTENER = 1 << 3
RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_ALLOW = 0x7FFF0000
# Offsets in struct seccomp_data. Both architectures are little-endian: the low word comes first.
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16

# <linux/bpf_common.h>
LOAD, JUMP_EQUAL, JUMP_GREATER_OR_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
AND = 0x54

# <linux/audit.h>
AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_SYSCALL_BIT = 0x40000000

MSG_FASTOPEN = 0x20000000
CLONE_THREAD = 0x00010000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C

# Numbers by name: x86_64 (<asm/unistd_64.h>), aarch64 (<asm-generic/unistd.h>); None where the
# architecture has no such call.
SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269), "socketpair": (53, 199),
    "clone": (56, 220), "clone3": (435, 435), "fork": (57, None), "vfork": (58, None),
    "execve": (59, 221), "execveat": (322, 281), "ioctl": (16, 29),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "setns": (308, 268), "unshare": (272, 97),
    "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "syslog": (103, 116), "vhangup": (153, 58),
    "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "memfd_secret": (447, 447), "lookup_dcookie": (212, 18),
    "seccomp": (317, 277), "setpriority": (141, 140),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "prlimit64": (302, 261), "setrlimit": (160, 164),
}  # fmt: skip

# The supervisor makes these calls in the VMM's place, where its policy allows them.
SUPERVISED = ("bind", "connect", "listen")

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
        "swapoff", "quotactl", "quotactl_fd",
    ),
    "files past the mount namespace": ("open_by_handle_at", "fanotify_init", "lookup_dcookie"),
    "system calls past this filter": (
        "io_uring_setup", "io_uring_enter", "io_uring_register", "seccomp",
    ),
    "large and rarely used parts of the kernel": (
        "bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl",
        "memfd_secret", "personality", "iopl", "ioperm", "shmget", "shmat", "msgget", "semget",
        "mq_open",
    ),
    "the host itself": (
        "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot",
        "sethostname", "setdomainname", "acct", "settimeofday", "clock_settime", "clock_adjtime",
        "adjtimex", "syslog", "vhangup",
    ),
    "its own limits": ("setrlimit", "setpriority", "sched_setattr", "ioprio_set"),
    "UNIX sockets": ("socketpair",),
}  # fmt: skip


class Instruction(Record):
    """struct sock_filter: for a jump, how many instructions to skip if true and if false."""

    code: int
    value: int
    if_true: int = 0
    if_false: int = 0


class Program(Structure):
    """struct sock_fprog."""

    _fields_ = (("length", c_ushort), ("filter", c_char_p))


def assemble(machine: str, process: int) -> tuple[Instruction, ...]:
    """The filter for a process of this id on this architecture."""
    column = list(AUDIT_ARCHITECTURES).index(machine)
    numbers = {name: pair[column] for name, pair in SYSCALLS.items() if pair[column] is not None}
    program = [
        Instruction(code=LOAD, value=ARCHITECTURE),
        Instruction(code=JUMP_EQUAL, value=AUDIT_ARCHITECTURES[machine], if_true=1),
        Instruction(code=RETURN, value=RET_KILL_PROCESS),
        Instruction(code=LOAD, value=NUMBER),
    ]
    if machine == "x86_64":
        program += [
            Instruction(code=JUMP_GREATER_OR_EQUAL, value=X32_SYSCALL_BIT, if_false=1),
            Instruction(code=RETURN, value=RET_KILL_PROCESS),
        ]

    def rule(name: str, *body: Instruction) -> None:
        number = numbers.get(name)
        if number is not None:
            skip = Instruction(code=JUMP_EQUAL, value=number, if_false=len(body))
            program.extend((skip, *body))

    for name in SUPERVISED:
        rule(name, _returns(RET_USER_NOTIF))
    for names in REFUSED.values():
        for name in names:
            rule(name, _refuses(errno.EPERM))
    # With ENOSYS the C library falls back to clone, whose flags a filter can see.
    rule("clone3", _refuses(errno.ENOSYS))
    rule("clone", *_unless_bit(0, CLONE_THREAD, errno.EPERM))
    for name in ("kill", "tgkill"):
        rule(name, *_unless_equal(0, (process,), errno.EPERM))
    rule("prlimit64", *_unless_equal(2, (0,), errno.EPERM))  # reading a limit is no harm
    rule("ioctl", *_if_equal(1, (TIOCSTI, TIOCLINUX), errno.EPERM))
    # A connection by the first packet would pass connect(2) by.
    for name, argument in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        rule(name, *_if_bit(argument, MSG_FASTOPEN, errno.EACCES))
    rule("socket", *_only_tcp())
    program.append(_returns(RET_ALLOW))
    return tuple(program)


def install(libc: Libc, program: Sequence[Instruction]) -> int:
    """Put this process under the filter for good. Returns the descriptor of its notifications.

    Raises OSError. Needs no_new_privs; the notifications are Linux 5.0.
    """
    code = b"".join(
        struct.pack("=HBBI", one.code, one.if_true, one.if_false, one.value) for one in program
    )
    return libc.seccomp(
        SET_MODE_FILTER, FILTER_FLAG_NEW_LISTENER, ctypes.byref(Program(len(program), code))
    )


def _returns(action: int) -> Instruction:
    return Instruction(code=RETURN, value=action)


def _refuses(error: int) -> Instruction:
    return _returns(RET_ERRNO | error)


def _load(argument: int) -> Instruction:
    """The low word of an argument: what the kernel takes of an int."""
    return Instruction(code=LOAD, value=FIRST_ARGUMENT + 8 * argument)


def _unless_equal(argument: int, values: Sequence[int], error: int) -> list[Instruction]:
    checks = [
        Instruction(code=JUMP_EQUAL, value=value, if_true=len(values) - position)
        for position, value in enumerate(values)
    ]
    return [_load(argument), *checks, _refuses(error), _returns(RET_ALLOW)]


def _if_equal(argument: int, values: Sequence[int], error: int) -> list[Instruction]:
    checks = [
        Instruction(code=JUMP_EQUAL, value=value, if_true=len(values) - position)
        for position, value in enumerate(values)
    ]
    return [_load(argument), *checks, _returns(RET_ALLOW), _refuses(error)]


def _unless_bit(argument: int, bit: int, error: int) -> list[Instruction]:
    check = Instruction(code=JUMP_ANY_BIT, value=bit, if_true=1)
    return [_load(argument), check, _refuses(error), _returns(RET_ALLOW)]


def _if_bit(argument: int, bit: int, error: int) -> list[Instruction]:
    check = Instruction(code=JUMP_ANY_BIT, value=bit, if_true=1)
    return [_load(argument), check, _returns(RET_ALLOW), _refuses(error)]


def _only_tcp() -> list[Instruction]:
    """socket(AF_INET or AF_INET6, SOCK_STREAM with any flags, 0 or IPPROTO_TCP), no other."""
    return [
        _load(0),
        Instruction(code=JUMP_EQUAL, value=2, if_true=1),
        Instruction(code=JUMP_EQUAL, value=10, if_false=6),
        _load(1),
        Instruction(code=AND, value=0xF),
        Instruction(code=JUMP_EQUAL, value=1, if_false=3),
        _load(2),
        Instruction(code=JUMP_EQUAL, value=0, if_true=2),
        Instruction(code=JUMP_EQUAL, value=6, if_true=1),
        _refuses(errno.EACCES),
        _returns(RET_ALLOW),
    ]
