"""--list and --metrics show the VMs that run, and nothing that is over."""

from __future__ import annotations

import json
import os
import shutil
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
from prometheus_client.parser import text_string_to_metric_families

from tests.framework import fake_vmm
from tests.framework.fake_vmm import APP_STARTED, IGNORES_SIGINT, LISTENING, STAYS, STOPS_ON_SIGINT
from tests.framework.launch import Launcher
from tests.framework.namespaces import with_own_network
from tests.framework.processes import children_of, is_gone_within, status_of

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


def test_the_list_takes_no_arguments() -> None:
    ended = KRUNCLIENT.run("--list", "root")
    assert ended.status == 64
    assert "--list takes options alone" in ended.error


def measured(path: Path) -> dict[str, float]:
    """By name, and the phase by its own."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            if sample.name == "krunclient_phase":
                found[sample.labels["phase"]] = sample.value
            else:
                found[sample.name] = sample.value
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_measured_as(path: Path, phase: str) -> bool:
    return path.exists() and path.stat().st_size > 0 and measured(path)[phase] == 1


def test_metrics_follow_a_vm_through_its_life_and_go_with_it(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    run = start(NEVER_STOPS, PORTS[0], f"--metrics={path}")
    wait_until(lambda: is_measured_as(path, "ready"))
    vm, found = listed()[PORTS[0]], measured(path)
    processes = [run.pid, *(int(child.name) for child in children_of(run.pid))]
    resident = sum(int(status_of(Path(f"/proc/{one}"))["VmRSS"].split()[0]) for one in processes)
    assert abs(found["krunclient_resident_memory_bytes"] / 1024 - resident) < resident / 2
    assert found["krunclient_processor_seconds_total"] <= vm["processor_seconds"]
    assert abs(time.time() - found["krunclient_start_time_seconds"] - vm["uptime_seconds"]) < 1
    run.send_signal(signal.SIGTERM)
    wait_until(lambda: is_measured_as(path, "stopping"))
    run.send_signal(signal.SIGINT)
    assert run.wait(SOON) == 128 + signal.SIGTERM
    assert not path.exists()


@pytest.mark.parametrize("whole_group", [False, True])
def test_metrics_go_with_a_supervisor_that_was_killed(
    start: Start, tmp_path: Path, whole_group: bool
) -> None:
    path = tmp_path / "vm.prom"
    run = start(SERVES, PORTS[0], f"--metrics={path}", prefix=["setsid"])
    wait_until(lambda: is_measured_as(path, "ready"))
    families = [run.pid, *(int(child.name) for child in children_of(run.pid))]
    if whole_group:
        os.killpg(run.pid, signal.SIGKILL)
    else:
        run.kill()
    run.wait(SOON)
    wait_until(lambda: not path.exists())
    assert all(is_gone_within(SOON, process) for process in families)


def test_a_vm_that_starts_again_at_once_keeps_its_metrics(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    start(SERVES, PORTS[0], f"--metrics={path}").kill()
    start(SERVES, PORTS[1], f"--metrics={path}")
    wait_until(lambda: is_measured_as(path, "ready"))
    time.sleep(0.5)
    assert is_measured_as(path, "ready")


def test_in_a_directory_each_vm_has_a_file_of_its_own(start: Start, tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    for port in PORTS[:2]:
        start(SERVES, port, f"--metrics={directory}")
    files = [directory / f"krunclient-{port}.prom" for port in PORTS[:2]]
    wait_until(lambda: all(is_measured_as(file, "ready") for file in files))
    assert sorted(directory.iterdir()) == files


def test_metrics_that_cant_be_written_any_more_are_told_once_and_harm_nothing(
    start: Start, tmp_path: Path
) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    run = start(SERVES, PORTS[0], f"--metrics={directory}")
    wait_until(lambda: is_measured_as(directory / f"krunclient-{PORTS[0]}.prom", "ready"))
    shutil.rmtree(directory)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=SOON)
    assert run.returncode == 3
    (line,) = stderr.decode().splitlines()
    assert line.startswith("krunclient: warning: ")
    assert "can't be written: no such file or directory" in line


def test_a_vm_whose_metrics_cant_be_written_does_not_start(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    ended = launcher.run(*arguments, str(PORTS[0]), "--metrics=/nowhere/vm.prom")
    assert ended.status == 64
    assert "--metrics can't be used: /nowhere/vm.prom: no such file or directory" in ended.error
