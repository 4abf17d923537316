"""What differs between architectures: one value for each."""

from __future__ import annotations

from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Architecture(Record):
    """`machine` is its name by uname(2), `elf_machine` e_machine of <elf.h>, `audit_arch` the
    number by <linux/audit.h> that a seccomp filter sees.

    `library_directory` is Debian's, `loader` the dynamic loader that programs name in PT_INTERP.
    `least_memory_mib` is what a guest needs to come up.

    `syscalls` has the numbers of the system calls that krunclient makes, refuses or supervises;
    None is one that the architecture lacks. Numbers from `foreign_syscalls` up are those of
    another ABI that has the same `audit_arch`: x32, on x86_64 alone.
    """

    machine: str
    elf_machine: int
    audit_arch: int
    library_directory: str
    loader: str
    least_memory_mib: int
    syscalls: Mapping[str, int | None]
    foreign_syscalls: int | None = None


# From 424 on, a new system call has the same number everywhere.
_EVERYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
    "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435, "close_range": 436,
    "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "quotactl_fd": 443, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446, "memfd_secret": 447, "process_mrelease": 448, "fchmodat2": 452,
    "statmount": 457, "listmount": 458, "setxattrat": 463, "open_tree_attr": 467,
    "file_setattr": 469,
}  # fmt: skip

X86_64 = Architecture(
    machine="x86_64",
    elf_machine=62,
    audit_arch=0xC000003E,
    library_directory="lib/x86_64-linux-gnu",
    loader="lib64/ld-linux-x86-64.so.2",
    least_memory_mib=64,
    foreign_syscalls=0x40000000,  # __X32_SYSCALL_BIT of <asm/unistd.h>
    syscalls={  # <asm/unistd_64.h>
        **_EVERYWHERE,
        "open": 2, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "ioctl": 16, "madvise": 28,
        "shmget": 29, "shmat": 30, "shmctl": 31, "pause": 34, "socket": 41, "connect": 42,
        "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50, "getsockname": 51,
        "socketpair": 53, "setsockopt": 54, "clone": 56, "fork": 57, "vfork": 58, "execve": 59,
        "kill": 62, "semget": 64, "semop": 65, "semctl": 66, "shmdt": 67, "msgget": 68,
        "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "fcntl": 72, "flock": 73, "creat": 85,
        "chmod": 90, "fchmod": 91, "ptrace": 101, "syslog": 103,
        "rt_sigqueueinfo": 129, "mknod": 133, "personality": 135,
        "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "vhangup": 153,
        "modify_ldt": 154, "pivot_root": 155, "prctl": 157, "adjtimex": 159, "setrlimit": 160,
        "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
        "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171,
        "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176, "quotactl": 179,
        "tkill": 200, "futex": 202, "sched_setaffinity": 203, "io_setup": 206,
        "lookup_dcookie": 212, "restart_syscall": 219, "semtimedop": 220, "clock_settime": 227,
        "clock_gettime": 228, "exit_group": 231, "tgkill": 234, "mq_open": 240, "mq_unlink": 241,
        "mq_timedsend": 242, "mq_timedreceive": 243, "mq_notify": 244, "mq_getsetattr": 245,
        "kexec_load": 246,
        "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251, "inotify_init": 253,
        "migrate_pages": 256, "openat": 257, "mknodat": 259, "fchmodat": 268, "ppoll": 271,
        "unshare": 272, "tee": 276, "vmsplice": 278, "move_pages": 279, "inotify_init1": 294,
        "accept4": 288, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300,
        "prlimit64": 302,
        "open_by_handle_at": 304, "clock_adjtime": 305, "sendmmsg": 307, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
        "sched_setattr": 314, "seccomp": 317, "memfd_create": 319, "kexec_file_load": 320,
        "bpf": 321, "execveat": 322, "userfaultfd": 323,
    },
)  # fmt: skip

AARCH64 = Architecture(
    machine="aarch64",
    elf_machine=183,
    audit_arch=0xC00000B7,
    library_directory="lib/aarch64-linux-gnu",
    loader="lib/ld-linux-aarch64.so.1",
    least_memory_mib=128,  # with 94 to 104 a guest ends without a word
    syscalls={  # <asm-generic/unistd.h>
        **_EVERYWHERE,
        "io_setup": 0, "lookup_dcookie": 18, "fcntl": 25, "inotify_init1": 26, "ioctl": 29,
        "ioprio_set": 30, "flock": 32, "mknodat": 33, "umount2": 39, "mount": 40, "pivot_root": 41,
        "chroot": 51, "fchmod": 52, "fchmodat": 53, "openat": 56, "vhangup": 58, "quotactl": 60,
        "ppoll": 73, "vmsplice": 75, "tee": 77, "acct": 89, "personality": 92, "exit_group": 94,
        "unshare": 97, "futex": 98, "kexec_load": 104, "init_module": 105, "delete_module": 106,
        "clock_settime": 112, "clock_gettime": 113, "syslog": 116, "ptrace": 117,
        "sched_setparam": 118,
        "sched_setscheduler": 119, "sched_setaffinity": 122, "restart_syscall": 128, "kill": 129,
        "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140, "reboot": 142,
        "sethostname": 161, "setdomainname": 162, "setrlimit": 164, "prctl": 167,
        "settimeofday": 170, "adjtimex": 171, "mq_open": 180, "mq_unlink": 181,
        "mq_timedsend": 182, "mq_timedreceive": 183, "mq_notify": 184, "mq_getsetattr": 185,
        "msgget": 186, "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "semget": 190, "semctl": 191,
        "semtimedop": 192, "semop": 193, "shmget": 194, "shmctl": 195, "shmat": 196, "shmdt": 197,
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203,
        "getsockname": 204, "sendto": 206, "setsockopt": 208, "sendmsg": 211, "brk": 214,
        "munmap": 215, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220,
        "execve": 221, "mmap": 222, "swapon": 224, "swapoff": 225, "mprotect": 226, "madvise": 233,
        "migrate_pages": 238, "move_pages": 239, "rt_tgsigqueueinfo": 240, "perf_event_open": 241,
        "accept4": 242,
        "prlimit64": 261, "fanotify_init": 262, "open_by_handle_at": 265, "clock_adjtime": 266,
        "setns": 268, "sendmmsg": 269, "process_vm_readv": 270, "process_vm_writev": 271,
        "kcmp": 272, "finit_module": 273, "sched_setattr": 274, "seccomp": 277,
        "memfd_create": 279, "bpf": 280, "execveat": 281, "userfaultfd": 282,
        "kexec_file_load": 294, "chmod": None, "creat": None, "fork": None, "inotify_init": None,
        "ioperm": None, "iopl": None, "mknod": None, "modify_ldt": None, "open": None,
        "pause": None, "vfork": None,
    },
)  # fmt: skip

ARCHITECTURES = {one.machine: one for one in (X86_64, AARCH64)}
