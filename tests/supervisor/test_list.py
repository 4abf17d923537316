"""--list shows the VMs that run, as the kernel knows them, and nothing that is over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.framework import fake_vmm
from tests.framework.fake_vmm import APP_STARTED, IGNORES_SIGINT, LISTENING, STAYS, STOPS_ON_SIGINT
from tests.framework.launch import Launcher
from tests.framework.namespaces import with_own_network
from tests.framework.processes import children_of, status_of

KRUNCLIENT = Launcher([sys.executable, "-m", "krunclient"], {"PATH": "/usr/bin:/bin"}, Path.cwd())
PORTS = range(30790, 30795)
SERVES = (STOPS_ON_SIGINT, APP_STARTED, LISTENING, STAYS)
BOOTS = (STOPS_ON_SIGINT, STAYS)
NEVER_STOPS = (IGNORES_SIGINT, APP_STARTED, LISTENING, STAYS)
SOON = 5

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(
            vmm: tuple[str, ...], port: int, *options: str, prefix: Sequence[str | Path] = ()
        ) -> subprocess.Popen[bytes]:
            directory = tmp_path / str(port)
            directory.mkdir()
            launcher, arguments = fake_vmm.prepare(directory, *vmm)
            launcher = replace(launcher, command=[*prefix, *launcher.command])
            process = stack.enter_context(launcher.start(*arguments, str(port), *options))
            stack.callback(process.kill)
            return process

        yield start


def listed(launcher: Launcher = KRUNCLIENT) -> dict[int, dict[str, Any]]:
    """By port."""
    ended = launcher.run("--list", "--log-format=json")
    assert (ended.status, ended.stderr) == (0, b"")
    return {vm["port"]: vm for vm in json.loads(ended.stdout) if vm["port"] in PORTS}


def phases() -> dict[int, str]:
    return {port: vm["phase"] for port, vm in listed().items()}


def become(expected: dict[int, str]) -> None:
    deadline = time.monotonic() + SOON
    while (found := phases()) != expected:
        assert time.monotonic() < deadline, found


def test_five_vms_are_shown_while_they_start_run_are_stopped_and_are_killed(start: Start) -> None:
    assert listed() == {}
    kinds = (SERVES, BOOTS, NEVER_STOPS, SERVES, SERVES)
    runs = [start(vmm, port) for vmm, port in zip(kinds, PORTS, strict=True)]
    _, second, third, _, fifth = PORTS
    all_but_one = {port: "ready" for port in PORTS if port != second}
    become({**all_but_one, second: "booting"})
    runs[2].send_signal(signal.SIGTERM)
    become({**all_but_one, second: "booting", third: "stopping"})
    runs[0].send_signal(signal.SIGTERM)
    assert runs[0].wait(SOON) == 3
    runs[3].kill()
    runs[3].wait(SOON)
    assert phases() == {second: "booting", third: "stopping", fifth: "ready"}
    for run in runs:
        run.kill()
        run.wait(SOON)
    assert listed() == {}


def test_what_is_shown_agrees_with_proc(start: Start, tmp_path: Path) -> None:
    port = PORTS[0]
    run = start(SERVES, port, "--env=SECRET=hidden", "--memory=99")
    become({port: "ready"})
    vm = listed()[port]
    processes = [Path(f"/proc/{run.pid}"), *children_of(run.pid)]
    assert len(processes) == 2
    resident = sum(int(status_of(one)["VmRSS"].split()[0]) for one in processes) / 1024
    assert (vm["pid"], vm["user"]) == (run.pid, os.geteuid())
    assert vm["root"] == str(tmp_path / str(port) / "root")
    assert abs(vm["memory_mib"] - resident) < 1
    assert 0 < vm["uptime_seconds"] < 60
    later = listed()[port]
    assert later["uptime_seconds"] > vm["uptime_seconds"]
    assert 0 < vm["processor_seconds"] <= later["processor_seconds"]
    assert "hidden" not in json.dumps(vm)


def test_people_get_a_table(start: Start) -> None:
    port = PORTS[0]
    run = start(SERVES, port)
    become({port: "ready"})
    heads, *lines = KRUNCLIENT.run("--list").stdout.decode().splitlines()
    columns = ["PID", "USER", "PORT", "PHASE", "UPTIME", "PROCESSOR", "MEMORY", "ROOT_PATH"]
    assert heads.split() == columns
    (line,) = (line for line in lines if str(port) in line)
    assert line.split()[:4] == [str(run.pid), str(os.geteuid()), str(port), "ready"]
    assert line.endswith(f"/{port}/root")
    assert line.index("ready") == heads.index("PHASE")


def test_a_vm_of_another_network_namespace_is_not_shown_and_is_there(start: Start) -> None:
    port = PORTS[0]
    other = start(SERVES, port, prefix=with_own_network())
    own = start(SERVES, PORTS[1])
    become({PORTS[1]: "ready"})
    assert listed()[PORTS[1]]["pid"] == own.pid
    if os.geteuid() != 0:
        return  # a user can't look into the namespace of a supervisor, which is closed
    enter = ["nsenter", "--target", str(other.pid), "--net"]
    there = replace(KRUNCLIENT, command=[*enter, *KRUNCLIENT.command])
    deadline = time.monotonic() + SOON
    while not listed(there):
        assert time.monotonic() < deadline
    assert {port: vm["pid"] for port, vm in listed(there).items()} == {port: other.pid}


def test_a_name_that_anybody_made_is_no_vm() -> None:
    before = KRUNCLIENT.run("--list").stdout
    for number in (os.getpid(), 2**22 + 1):
        with socket.socket(socket.AF_UNIX) as impostor:
            impostor.bind(f"\0krunclient-vm-{number}")
            assert KRUNCLIENT.run("--list").stdout.count(b"\n") == before.count(b"\n")


def test_it_takes_no_arguments() -> None:
    ended = KRUNCLIENT.run("--list", "root")
    assert ended.status == 64
    assert "--list takes options alone" in ended.error
