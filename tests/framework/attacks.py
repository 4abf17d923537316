"""What a VMM that its guest has taken over tries by system calls, and what must come of each.

An attack is a C expression that is negative on failure, and the errno that it must fail with.
Beside it stands, where there is one, the twin that a VMM needs: it must not fail with EPERM.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    name: str
    expression: str
    refused_with: tuple[str, ...] = ("EPERM",)
    twin: str = ""


ATTACKS = (
    # The supervisor's death
    Attack("pdeathsig", "prctl(PR_SET_PDEATHSIG, 0)", twin='prctl(PR_SET_NAME, "x")'),
    Attack("dumpable", "prctl(PR_SET_DUMPABLE, 1)", twin="prctl(PR_GET_DUMPABLE)"),
    Attack("kill supervisor", "kill(getppid(), SIGKILL)", twin="kill(getpid(), 0)"),
    Attack("set owner", "fcntl(0, F_SETOWN, getppid())", twin="fcntl(0, F_GETFL)"),
    Attack("set signal", "fcntl(0, F_SETSIG, SIGKILL)", twin="fcntl(0, F_SETFD, FD_CLOEXEC)"),
    Attack("lease", "fcntl(0, F_SETLEASE, F_RDLCK)", twin="fcntl(0, F_GETFD)"),
    Attack("ioctl owner", "ioctl(0, FIOSETOWN, &pid)", twin="ioctl(0, FIOCLEX)"),
    Attack("fork", "syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)"),
    Attack("thread with files of its own", "syscall(SYS_clone, 0x10900, 0, 0, 0, 0)"),
    Attack("descriptors of its own", "syscall(SYS_close_range, 900, 901, 2)",
           twin="syscall(SYS_close_range, 900, 901, 0)"),
    Attack("affinity of others", "syscall(SYS_sched_setaffinity, getppid(), 8, &mask)",
           twin="syscall(SYS_sched_setaffinity, 0, 8, &mask)"),
    Attack("scheduler", "syscall(SYS_sched_setscheduler, 0, 0, &mask)"),
    # The network
    Attack("device", 'setsockopt(tcp, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3)',
           twin="setsockopt(tcp, SOL_SOCKET, SO_REUSEPORT, &one, 4)"),
    Attack("source route", "setsockopt(tcp6, IPPROTO_IPV6, IPV6_RTHDR, &one, 4)",
           twin="setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &one, 4)"),
    Attack("multicast", "setsockopt(tcp, IPPROTO_IP, MCAST_JOIN_GROUP, &one, 4)"),
    Attack("connect elsewhere", "connect(tcp, (void *)&elsewhere, sizeof(elsewhere))", ("EACCES",)),
    Attack("connect past memory", "connect(tcp, (void *)(1UL << 63), 16)", ("EFAULT",)),
    Attack("connect no socket", "connect(0, (void *)&allowed, sizeof(allowed))",
           ("ENOTSOCK", "EACCES")),
    Attack("bind another port", "bind(tcp, (void *)&elsewhere, sizeof(elsewhere))", ("EACCES",)),
    Attack("listen without bind", "listen(tcp, 1)", ("EACCES",)),
    Attack("UDP", "socket(AF_INET, SOCK_DGRAM, 0)", ("EACCES",)),
    Attack("UNIX", "socket(AF_UNIX, SOCK_STREAM, 0)", ("EACCES",)),
    # The host's files
    Attack("host file", 'open("/etc/passwd", O_RDONLY)', ("ENOENT",),
           twin='open("/guest/bin/app", O_RDONLY)'),
    Attack("rights of kvm", 'chmod("/dev/kvm", 0666)', ("EROFS", "EPERM"),
           twin='open("/dev/kvm", O_RDWR)'),
    Attack("mount", 'mount("x", "/guest", "tmpfs", 0, 0)'),
    Attack("mount table", "syscall(457, 0, 0, 0, 0)"),
    Attack("claim of the overlay", "flock(0, LOCK_UN)"),
    # What others of the user's have, and what no limit counts
    Attack("shared memory", "shmctl(0, IPC_RMID, 0)"),
    Attack("messages", "msgctl(0, IPC_RMID, 0)"),
    Attack("semaphores", "semctl(0, 0, IPC_RMID)"),
    Attack("queues", 'syscall(SYS_mq_unlink, "x")'),
    Attack("memory file", 'memfd_create("x", 0)'),
    Attack("guest memory file", "ioctl(kvm, 0xc040aed4UL, memory)",
           twin="ioctl(kvm, 0xae00, 0)"),
    Attack("pages in pipes", "vmsplice(pipes[1], &vector, 1, 0)",
           twin="write(pipes[1], memory, 1)"),
    Attack("watches", "inotify_init1(0)"),
    Attack("asynchronous slots", "syscall(SYS_io_setup, 1, &context)"),
    # The terminal
    Attack("type ahead", 'ioctl(0, TIOCSTI, "x")', twin="ioctl(0, TIOCGWINSZ, &window)"),
    Attack("stop output", "ioctl(0, TCXONC, TCOOFF)", twin="ioctl(0, FIONREAD, &one)"),
    Attack("line discipline", "ioctl(0, TIOCSETD, &one)", twin="tcgetattr(0, &terminal)"),
    Attack("modes", "ioctl(0, TCSETS, &terminal)", ("ok",)),  # but nothing comes of it
)  # fmt: skip

SOURCE = """
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <termios.h>

static void attempt(const char *name, long result)
{
    printf("%s: %s\\n", name, result >= 0 ? "ok" : strerrorname_np(errno));
}

void taken_over(void)
{
    int one = 1, pid = getppid();
    unsigned long mask = 1, context = 0;
    char memory[64] = "";
    struct iovec vector = {memory, 1};
    int pipes[2], kvm = open("/dev/kvm", O_RDWR);
    struct winsize window;
    struct termios terminal;
    struct sockaddr_in elsewhere = {.sin_family = AF_INET, .sin_port = htons(81)};
    struct sockaddr_in allowed = {.sin_family = AF_INET, .sin_port = htons(8443)};
    int tcp = socket(AF_INET, SOCK_STREAM, 0), tcp6 = socket(AF_INET6, SOCK_STREAM, 0);

    if (pipe(pipes))
        _exit(97);
    allowed.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ATTEMPTS
    fflush(stdout);
}
"""


def source() -> str:
    """The C code that tries them all, and prints what came of each."""
    lines = []
    for attack in ATTACKS:
        lines.append(f'    attempt("{attack.name}", {attack.expression});')
        if attack.twin:
            lines.append(f'    attempt("twin of {attack.name}", {attack.twin});')
    return SOURCE.replace("ATTEMPTS", "\n".join(lines).strip())


def breaches(output: bytes) -> list[str]:
    """What went through that should not, and what did not that should."""
    found = dict(line.split(": ") for line in output.decode().splitlines())
    wrong = [
        f"{attack.name}: {found[attack.name]}"
        for attack in ATTACKS
        if found[attack.name] not in attack.refused_with
    ]
    return wrong + [
        f"{name}: {result}"
        for name, result in found.items()
        if name.startswith("twin of ") and result == "EPERM"
    ]
