"""A VMM of a few lines of C in place of libkrun's, where what is tested is the supervisor.

It runs where a guest would start, behind all walls of the sandbox, and needs no KVM.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.framework import recorder
from tests.framework.launch import Launcher
from tests.framework.paths import PYTHONPATH, TOP
from tests.framework.processes import children_of, holds, is_gone_within
from tests.framework.roots import static_root

STATUS = 5
WITHOUT_KVM = Launcher(
    [sys.executable, "-m", "tests.framework.without_kvm"],
    {"PATH": "/usr/bin:/bin", "PYTHONPATH": PYTHONPATH},
    TOP,
)

# What libkrun's virtio-fs server does when the guest looks up its program.
APP_STARTED = 'if (open("/guest/bin/app", O_RDONLY) < 0) _exit(96);'
LISTENING = """
    int socket_ = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(80)};
    if (bind(socket_, (void *)&any, sizeof(any)) || listen(socket_, 8))
        _exit(98);
"""
STOPS_ON_SIGINT = "signal(SIGINT, stop);"
IGNORES_SIGINT = "signal(SIGINT, SIG_IGN);"
STAYS = "for (;;) pause();"
CHANGES_ITS_USER = "syscall(SYS_setresuid, 1, 1, 0);"
TELLS_ITS_STORY = ("--log-level=info", "--log-format=json")

INCLUDES = """
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
static void stop(int number) { _exit(number == SIGINT ? 3 : 97); }
void (*used)(int) = stop;
"""


def prepare(directory: Path, *body: str) -> tuple[Launcher, list[str | Path]]:
    """A launcher, and the arguments that come before its options: libraries and ROOT_PATH.

    A VMM whose body comes to its end has the status 5.
    """
    arguments = build(directory, source(*body))
    return WITHOUT_KVM, arguments


def source(*body: str) -> str:
    return f"{INCLUDES}\nvoid taken_over(void)\n{{\n{''.join(body)}\n}}\n"


def build(directory: Path, code: str) -> list[str | Path]:
    """The libraries with this code, a root beside them, and the arguments that name them."""
    libkrun, libkrunfw = recorder.build(directory, recorder.NEWEST, code)
    Path(f"{libkrun}.settings").write_text(f"/dev/null {STATUS}")
    root = static_root(directory / "root")
    return ["--libkrun", libkrun, "--libkrunfw", libkrunfw, root]


@contextmanager
def open_port(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Once its port accepts connections, and gone after that, so that others can have the port."""
    try:
        assert process.stderr is not None
        while b"accepts connections" not in process.stderr.readline():
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_the_app_has_started(process: subprocess.Popen[bytes]) -> None:
    """Until APP_STARTED: a stop that comes earlier is not the app's to hear."""
    while not any(holds(vmm, "/bin/app") for vmm in children_of(process.pid)):
        assert process.poll() is None
        time.sleep(0.02)


def dies_with_its_supervisor(process: subprocess.Popen[bytes]) -> bool:
    """Kill a krunclient that tells its story as JSON once it is ready: is its VMM gone then?"""
    assert process.stderr is not None
    events = [json.loads(process.stderr.readline()) for _ in range(3)]
    assert events[-1]["event"] == "ready"
    process.kill()
    process.communicate()
    return is_gone_within(1, events[1]["vmm_pid"])
