"""A guest that takes all it can get takes its own share and no more; a neighbour keeps serving."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.framework.launch import Launcher, Server
from tests.framework.paths import TOP
from tests.framework.processes import children_of
from tests.framework.roots import HTTPD

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
        assert neighbour.get(timeout=30) == b"hello\n"
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
        assert neighbour.get(timeout=30) == b"hello\n"
        assert flooded.process.poll() is None
        assert resident_mib(flooded.vmm) < GUEST_MIB + OVERHEAD_MIB
        assert resident_mib(Path("/proc", str(flooded.process.pid))) < 40
        clients.communicate("")
        assert neighbour.get(timeout=30) == b"hello\n"
        flooded.wait_until_it_answers()


@pytest.mark.timeout(400)
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
            assert neighbour.get(timeout=30) == b"hello\n"
    process.communicate()
    assert (process.returncode, received) == (0, OUTPUT_BYTES)
    assert largest < 512 + OVERHEAD_MIB
