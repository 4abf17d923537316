"""passt as a supervised child: what it may do, and what becomes of the VM when it fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework import fake_vmm, recorder
from tests.framework.fake_vmm import APP_STARTED, STAYS, STOPS_ON_SIGINT
from tests.framework.launch import Ended
from tests.framework.processes import children_of, is_gone_within
from tests.framework.servers import Echo

PORT = "30776"  # no other module's: connections stay in TIME_WAIT on it
Launch = Callable[..., Ended]

ATTACKS = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static void attempt(const char *name, long result)
{
    fprintf(stderr, "%s=%s;", name, result >= 0 ? "ok" : strerrorname_np(errno));
}

static long reach(const char *ip, int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int tcp = socket(AF_INET, SOCK_STREAM, 0), error = 0;
    socklen_t size = sizeof(error);
    struct pollfd one = {.fd = tcp, .events = POLLOUT};

    inet_pton(AF_INET, ip, &to.sin_addr);
    if (connect(tcp, (void *)&to, sizeof(to)) && errno != EINPROGRESS)
        return -1;
    poll(&one, 1, 2000);
    if (one.revents & POLLHUP) {
        errno = ECONNREFUSED;
        return -1;
    }
    getsockopt(tcp, SOL_SOCKET, SO_ERROR, &error, &size);
    errno = error;
    return -!!error;
}

static long listening(int port)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    return bind(tcp, (void *)&any, sizeof(any)) || listen(tcp, 1) ? -1 : 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_un log = {.sun_family = AF_UNIX, .sun_path = "/dev/log"};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(OTHER)};
    int tcp = socket(AF_INET, SOCK_STREAM, 0), kind = 0, parent = getppid();
    socklen_t size = sizeof(kind);

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    attempt("allowed", reach("192.0.2.16", ALLOWED));
    attempt("another port", reach("192.0.2.16", OTHER));
    attempt("another address", reach("127.0.0.1", OTHER));
    attempt("the mapped port", listening(PORT));
    attempt("listen elsewhere", listening(PORT + 1));
    attempt("fast open", sendto(tcp, "x", 1, MSG_FASTOPEN, (void *)&to, sizeof(to)));
    attempt("device", setsockopt(tcp, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
    attempt("source route", setsockopt(tcp, IPPROTO_IP, 4, &kind, 4));
    attempt("buffer", setsockopt(tcp, SOL_SOCKET, SO_RCVBUF, &size, 4));
    attempt("unix", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&log, sizeof(log)));
    getsockopt(socket(AF_INET, SOCK_DGRAM, 0), SOL_SOCKET, SO_TYPE, &kind, &size);
    attempt("udp", kind == SOCK_DGRAM ? 0 : -1);
    kind = 0;
    tcp = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
    getsockopt(tcp, SOL_SOCKET, SO_DOMAIN, &kind, &size);
    attempt("sockets of others", kind == AF_NETLINK ? 0 : -1);
    attempt("interfaces", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    attempt("trace", ptrace(PTRACE_ATTACH, parent, 0, 0));
    attempt("memory", syscall(SYS_process_vm_readv, parent, 0, 0, 0, 0, 0));
    attempt("ring", syscall(SYS_io_uring_setup, 1, 0));
    attempt("accept", accept(tcp, 0, 0));
    attempt("signal", fcntl(tcp, F_SETOWN, parent));
    attempt("fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    attempt("patience", setsockopt(tcp, SOL_SOCKET, SO_SNDTIMEO, &to, sizeof(to)));
    attempt("write", open(argv[0], O_WRONLY));
    fprintf(stderr, "\\n");
    return argc == 0;
}
"""
EXPECTED = {
    "allowed": "ok",
    "another port": "ECONNREFUSED",
    "another address": "ECONNREFUSED",
    "the mapped port": "ok",  # but it is no socket of TCP's
    "listen elsewhere": "EACCES",
    "fast open": "EACCES",
    "device": "EPERM",
    "source route": "EPERM",
    "buffer": "ok",
    "unix": "EINPROGRESS",
    "interfaces": "ok",
    "trace": "EPERM",
    "memory": "EPERM",
    "ring": "EPERM",
    "accept": "EPERM",
    "signal": "EPERM",
    "fork": "EPERM",
    "patience": "EPERM",
}


def compiled(path: Path, source: str) -> Path:
    subprocess.run(
        ["gcc", "-static", "-O1", "-Wall", "-Werror", "-x", "c", "-", "-o", path],
        input=source.encode(),
        check=True,
    )
    path.chmod(0o755)
    return path


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def let_all_users_reach(path: Path) -> None:
    for directory in (path, *path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o111)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Launch with a program in passt's place."""
    let_all_users_reach(tmp_path)
    launcher, arguments = fake_vmm.prepare(tmp_path, STOPS_ON_SIGINT, APP_STARTED, STAYS)

    def run(passt: Path | str, *options: str) -> Ended:
        given = ("--network=passt", f"--passt={passt}", *options)
        return launcher.run(*arguments, PORT, *given, timeout=20)

    return run


def test_a_passt_that_a_guest_has_taken_over_reaches_what_is_allowed_and_nothing_else(
    launch: Launch, tmp_path: Path
) -> None:
    with Echo("127.0.0.1") as allowed, Echo("127.0.0.1") as other:
        code = ATTACKS.replace("PORT", PORT).replace("OTHER", str(other.port))
        attacker = compiled(tmp_path / "passt", code.replace("ALLOWED", str(allowed.port)))
        ended = launch(attacker, f"--allow=127.0.0.1:{allowed.port}", "--log-level=debug")
        (line,) = (one for one in ended.stderr.decode().splitlines() if "debug: passt: " in one)
        found = dict(one.split("=") for one in line.partition("passt: ")[2].split(";") if one)
        assert {name: found[name] for name in EXPECTED} == EXPECTED
        assert all(found[name] != "ok" for name in found.keys() - EXPECTED.keys()), found
        assert (allowed.visits, other.visits) == (1, 0)


HOLDS_UP = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void)
{
    struct sockaddr_in mine = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    struct sockaddr_in news = {.sin_family = AF_INET, .sin_port = htons(1)};
    int bell = socket(AF_INET, SOCK_STREAM, 0), tcp = socket(AF_INET, SOCK_STREAM, 0);
    char bytes[4096] = "";

    inet_pton(AF_INET, "192.0.2.254", &news.sin_addr);
    if (bind(bell, (void *)&mine, sizeof(mine)) || listen(bell, 1))
        return 1;
    while (send(bell, bytes, sizeof(bytes), MSG_DONTWAIT) > 0);
    fcntl(bell, F_SETFL, 0);
    fcntl(tcp, F_SETFL, 0);
    connect(tcp, (void *)&news, sizeof(news));
    for (int i = 0; i < 3; i++)
        accept4(bell, 0, 0, 0);
    for (;;) {
        sleep(1);
        accept4(bell, 0, 0, 0);
    }
}
"""


def test_a_passt_that_was_taken_over_cant_hold_up_the_supervisor(tmp_path: Path) -> None:
    let_all_users_reach(tmp_path)
    holds_up = compiled(tmp_path / "passt", HOLDS_UP.replace("PORT", PORT))
    launcher, arguments = fake_vmm.prepare(tmp_path, STOPS_ON_SIGINT, APP_STARTED, STAYS)
    options = ("--network=passt", f"--passt={holds_up}", "--log-level=info")
    with fake_vmm.open_port(launcher.start(*arguments, PORT, *options)) as process:
        fake_vmm.wait_until_the_app_has_started(process)
        for _ in range(3):
            socket.create_connection(("127.0.0.1", int(PORT)), timeout=5).close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)
        assert process.returncode == 3


ACCEPTS = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    struct sockaddr_in news = {.sin_family = AF_INET, .sin_port = htons(1)};
    int bell = socket(AF_INET, SOCK_STREAM, 0), tcp = -1;
    socklen_t size = sizeof(name);
    struct pollfd one = {.events = POLLIN};

    inet_pton(AF_INET, "192.0.2.254", &news.sin_addr);
    if (bind(bell, (void *)&name, size) || listen(bell, 1))
        return 1;
    connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&news, sizeof(news));
    one.fd = bell;
    while ((tcp = accept4(bell, 0, 0, 0)) < 0)
        poll(&one, 1, -1);
    memset(&name, 0, sizeof(name));
    getsockname(tcp, (void *)&name, &size);
    fprintf(stderr, "%d %s %d;\\n", name.sin_family, inet_ntoa(name.sin_addr),
            ntohs(name.sin_port));
    return getsockname(tcp, (void *)8, &size);
}
"""


@pytest.mark.parametrize(
    ("host", "client"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::1", "::1"), ("::", "::1")],
)
def test_each_client_came_in_where_passt_listens_as_it_thinks(
    tmp_path: Path, host: str, client: str
) -> None:
    let_all_users_reach(tmp_path)
    accepts = compiled(tmp_path / "passt", ACCEPTS.replace("PORT", PORT))
    launcher, arguments = fake_vmm.prepare(tmp_path, STOPS_ON_SIGINT, APP_STARTED, STAYS)
    options = ("--network=passt", f"--passt={accepts}", f"--bind={host}", "--log-level=debug")
    with (
        fake_vmm.open_port(launcher.start(*arguments, PORT, *options)) as process,
        socket.create_connection((client, int(PORT)), timeout=5),
    ):
        _, told = process.communicate(timeout=20)
        assert f"passt: {socket.AF_INET} 127.0.0.1 {PORT};" in told.decode()
        assert process.returncode == 70  # it ended, and not by an address that is none


def test_where_passt_is_missing_it_is_69_with_what_to_do(launch: Launch, tmp_path: Path) -> None:
    ended = launch(tmp_path / "none")
    assert ended.status == 69
    assert "no such file or directory; install the package passt" in ended.error
    assert "it can't be read and executed" in launch("/etc/passwd").error
    plan = launch("/bin/true", "--plan")
    assert plan.status == 0


def test_a_passt_that_is_too_old_is_69_with_what_it_says(launch: Launch, tmp_path: Path) -> None:
    old = script(tmp_path / "passt", "echo \"passt: unrecognized option '--fd'\" >&2; exit 1")
    ended = launch(old)
    assert ended.status == 69
    assert "it has ended: passt: unrecognized option '--fd'; install passt" in ended.error


def test_a_passt_that_ends_once_it_serves_is_70(launch: Launch, tmp_path: Path) -> None:
    serves = "int main(void) { char x[16] = {2, 0, PORT >> 8, PORT & 255}; int s = socket(2, 1, 0);"
    serves += ' return bind(s, (void *)x, 16) || listen(s, 1) || write(2, "gone\\n", 5); }'
    includes = "#include <sys/socket.h>\n#include <unistd.h>\n"
    ended = launch(compiled(tmp_path / "passt", includes + serves.replace("PORT", PORT)))
    assert ended.status == 70
    assert "the network of the VM is gone" in ended.error
    assert "it has ended: gone" in ended.error


def test_a_libkrun_without_network_cards_is_69(tmp_path: Path, launch: Launch) -> None:
    old, libkrunfw = recorder.build(tmp_path, 113)
    ended = launch("/bin/true", f"--libkrun={old}", f"--libkrunfw={libkrunfw}")
    assert ended.status == 69
    assert "it has no function krun_add_net_unixstream" in ended.error


def test_without_a_sandbox_it_is_64(launch: Launch) -> None:
    ended = launch("/bin/true", "--sandbox=off")
    assert ended.status == 64
    assert "it is the sandbox that keeps passt in bounds" in ended.error


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_passt_is_gone_with_its_supervisor_and_at_a_stop(tmp_path: Path, how: int) -> None:
    stays = script(tmp_path / "passt", "exec sleep 1000")
    let_all_users_reach(tmp_path)
    launcher, arguments = fake_vmm.prepare(tmp_path, STOPS_ON_SIGINT, APP_STARTED, STAYS)
    process = launcher.start(*arguments, PORT, "--network=passt", f"--passt={stays}")
    started = threading.Event()
    while not started.wait(0.05):
        children = children_of(process.pid)
        lines = [(one / "cmdline").read_bytes() for one in children]
        if any(b"1000" in line for line in lines):
            started.set()
    process.send_signal(how)
    process.communicate(timeout=10)
    assert len(children) == 2
    assert all(is_gone_within(1, int(one.name)) for one in children)
