"""A guest that takes all it can get takes its own share and no more; a neighbour keeps serving."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest

from target import MACHINE
from tests.framework.launch import Launcher, Server
from tests.framework.paths import TOP
from tests.framework.processes import children_of, status_of
from tests.framework.roots import HTTPD, open_to

NewRoot = Callable[..., Path]
GUEST_MIB = 128
OVERHEAD_MIB = 120
OUTPUT_BYTES = 2**30

FLOODS = {
    "memory": "while :; do tail /dev/zero; done",
    "processes": "while :; do sleep 1000 & done",
    "descriptors": "i=0; while [ $i -lt 60 ]; do i=$((i+1)); (sh -c 'n=10; while [ $n -lt 1000 ];"
    ' do eval "exec $n</bin/busybox"; n=$((n+1)); done; sleep 1000\' &); done; sleep 1000',
    "kernel console": "while :; do dd if=/dev/zero bs=64k count=64 2>/dev/null | tr '\\0' x"
    " >/dev/hvc0; done",
}


def resident_mib(process: Path) -> int:
    """Proportional set size of a process, in MiB."""
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no Pss")


@pytest.mark.parametrize("kind", FLOODS)
def test_a_guest_that_floods_stays_in_its_bounds(
    launcher: Launcher, new_root: NewRoot, port: int, neighbour: Server, kind: str
) -> None:
    # Out of memory, the guest kills the flood; the server is a process of its own.
    root = new_root(f"(sleep 1; {FLOODS[kind]}) & {HTTPD}")
    with launcher.serve(root, port, f"--memory={GUEST_MIB}") as flooding:
        threading.Event().wait(10)
        assert neighbour.get(timeout=60) == b"hello\n"
        if flooding.process.poll() is None:
            assert resident_mib(flooding.vmm) < GUEST_MIB + OVERHEAD_MIB
            assert resident_mib(Path("/proc", str(flooding.process.pid))) < 40


def test_ten_thousand_connections_that_say_nothing_harm_no_one_else(
    launcher: Launcher, new_root: NewRoot, port: int, neighbour: Server
) -> None:
    with launcher.serve(new_root(HTTPD), port, f"--memory={GUEST_MIB}") as flooded:
        command = [sys.executable, "-m", "tests.framework.silent_clients", str(port), "10000"]
        clients = subprocess.Popen(command, cwd=TOP, stdin=PIPE, stdout=PIPE, text=True)
        assert clients.stdout is not None
        assert clients.stdout.readline() == "10000\n"
        assert neighbour.get(timeout=60) == b"hello\n"
        assert flooded.process.poll() is None
        assert resident_mib(flooded.vmm) < GUEST_MIB + OVERHEAD_MIB
        assert resident_mib(Path("/proc", str(flooded.process.pid))) < 40
        clients.communicate("")
        assert neighbour.get(timeout=60) == b"hello\n"
        flooded.wait_until_it_answers()


@pytest.mark.timeout(900)
def test_a_gibibyte_of_output_comes_through_whole_and_takes_no_memory(
    launcher: Launcher, new_root: NewRoot, port: int, neighbour: Server
) -> None:
    root = new_root(f"dd if=/dev/zero bs=1M count={OUTPUT_BYTES // 2**20} 2>/dev/null")
    process = launcher.start(root, str(port))
    assert process.stdout is not None
    received, largest = 0, 0
    while chunk := process.stdout.read1(2**20):  # type: ignore[attr-defined]
        received += len(chunk)
        if received % 2**26 < len(chunk):
            for child in children_of(process.pid):
                largest = max(largest, resident_mib(child))
            assert neighbour.get(timeout=60) == b"hello\n"
    process.communicate()
    assert (process.returncode, received) == (0, OUTPUT_BYTES)
    assert largest < 512 + OVERHEAD_MIB


MANY_FILES = 20_000
CAP_SYS_RESOURCE = 24  # <linux/capability.h>


def may_raise_limits() -> bool:
    """Whether root may: in most containers it may not."""
    return bool(int(status_of(Path("/proc/self"))["CapEff"], 16) >> CAP_SYS_RESOURCE & 1)


def few_open_files(most: int) -> Callable[[], None]:
    """To be run before exec. Who starts krunclient as root can raise it again."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def test_more_files_than_the_vmm_may_open_are_served_or_warned_of_and_hang_nothing(
    any_launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(
        "mkdir /www; echo hello >/www/index.html; httpd -p 80 -h /www\n"
        "find /many -type f -exec stat -c %s {} + 2>/dev/null | wc -l; while :; do sleep 1; done"
    )
    for number in range(MANY_FILES):
        file = root / f"many/{number % 100}/{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    if any_launcher.user is not None:
        open_to(any_launcher.user, root)
    process = any_launcher.start(root, str(port), preexec=few_open_files(4096))
    with Server(process, port) as server:
        assert process.stdout is not None
        found = int(process.stdout.readline())
        for _ in range(5):
            server.wait_until_it_answers(10)  # if only that it can't open its file
        process.kill()
        _, stderr = process.communicate()
    warning = f"krunclient: warning: at most {4096} open files"
    if any_launcher.user is None and may_raise_limits():
        assert found == MANY_FILES
        assert warning not in stderr.decode()
    else:
        assert 3500 < found < MANY_FILES
        assert stderr.decode().startswith(warning)


def test_too_few_open_files_for_libkrun_are_70_and_no_hang(
    any_launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root("exit 5")
    ended = any_launcher.run(root, str(port), preexec=few_open_files(64))
    if any_launcher.user is None and may_raise_limits():
        assert (ended.status, ended.stderr) == (5, b"")
    else:
        assert ended.status == 70
        error = ended.stderr.decode().splitlines()[-1]
        # A thread of libkrun's panics, or with upstream's the guest, which finds no init then.
        by_guest = "Kernel panic - not syncing: Requested init" in error
        if not (by_guest and "KRUNCLIENT_LIBKRUN" in any_launcher.environment):
            # The one for aarch64 ends the VM by itself, and has the words of another C library.
            panics = MACHINE == "x86_64"
            assert ("Too many open files" if panics else "No file descriptors available") in error
            assert ("the limit on open files" in error) == panics
