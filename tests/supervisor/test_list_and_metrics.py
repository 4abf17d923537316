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

import pytest

from tests.framework import fake_vmm
from tests.framework.fake_vmm import APP_STARTED, IGNORES_SIGINT, LISTENING, STAYS, STOPS_ON_SIGINT
from tests.framework.launch import Launcher
from tests.framework.namespaces import UNSHARE, with_own_network
from tests.framework.processes import children_of, is_gone_within, status_of
from tests.framework.seen import listed, measured, phases, wait_until

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


def become(expected: dict[int, str]) -> None:
    deadline = time.monotonic() + SOON
    while (found := phases(KRUNCLIENT, PORTS)) != expected:
        assert time.monotonic() < deadline, found


def test_five_vms_are_shown_while_they_start_run_are_stopped_and_are_killed(start: Start) -> None:
    assert listed(KRUNCLIENT, PORTS) == {}
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
    assert phases(KRUNCLIENT, PORTS) == {second: "booting", third: "stopping", fifth: "ready"}
    for run in runs:
        run.kill()
        run.wait(SOON)
    assert listed(KRUNCLIENT, PORTS) == {}


def test_what_is_shown_agrees_with_proc(start: Start, tmp_path: Path) -> None:
    port = PORTS[0]
    run = start(SERVES, port, "--env=SECRET=hidden", "--memory=199")
    become({port: "ready"})
    vm = listed(KRUNCLIENT, PORTS)[port]
    processes = [Path(f"/proc/{run.pid}"), *children_of(run.pid)]
    assert len(processes) == 2
    resident = sum(int(status_of(one)["VmRSS"].split()[0]) for one in processes) / 1024
    assert (vm["pid"], vm["user"]) == (run.pid, os.geteuid())
    assert vm["root"] == str(tmp_path / str(port) / "root")
    assert abs(vm["memory_mib"] - resident) < 1
    assert 0 < vm["uptime_seconds"] < 60
    later = listed(KRUNCLIENT, PORTS)[port]
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
    assert listed(KRUNCLIENT, PORTS)[PORTS[1]]["pid"] == own.pid
    if os.geteuid() != 0:
        return  # a user can't look into the namespace of a supervisor, which is closed
    enter = ["nsenter", "--target", str(other.pid), "--net"]
    there = replace(KRUNCLIENT, command=[*enter, *KRUNCLIENT.command])
    deadline = time.monotonic() + SOON
    while not listed(there, PORTS):
        assert time.monotonic() < deadline
    assert {port: vm["pid"] for port, vm in listed(there, PORTS).items()} == {port: other.pid}


IMPOSTOR = """
import os, socket, sys, time
with open("/proc/self/comm", "w") as file:
    file.write(sys.argv[1])
names = [socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
for name in names[: int(sys.argv[2])]:
    name.bind(f"\\0krunclient-vm-{os.getpid()}")
print(flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("comm", "words"),
    [
        ("python3", ["root", "80"]),
        ("krun:\x1b[31mX", ["root", "80"]),
        ("krun:none", ["root", "80"]),
        ("krun:ready", ["root", "\u00b2"]),
        ("krun:ready", ["root", "0"]),
        ("krun:ready", ["root", "9" * 5000]),
        ("krun:ready", ["--no-such-option"] * 4000),
    ],
)
def test_a_process_that_pretends_is_no_vm(comm: str, words: list[str]) -> None:
    command = [sys.executable, "-c", IMPOSTOR, comm, "1", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as impostor:
        try:
            assert impostor.stdout is not None
            assert impostor.stdout.readline() == b"\n"
            ended = KRUNCLIENT.run("--list", "--log-format=json", timeout=10)
            assert (ended.status, ended.stderr) == (0, b"")
            assert impostor.pid not in {vm["pid"] for vm in json.loads(ended.stdout)}
        finally:
            impostor.kill()


@pytest.mark.parametrize("number", ["0", "-1", "9" * 30, "01", "", "x", str(2**22 + 1)])
def test_a_name_of_no_process_is_no_vm(number: str) -> None:
    before = KRUNCLIENT.run("--list").stdout.count(b"\n")
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(f"\0krunclient-vm-{number}")
        ended = KRUNCLIENT.run("--list")
        assert (ended.status, ended.stderr) == (0, b"")
        assert ended.stdout.count(b"\n") == before


def test_a_vm_whose_name_another_socket_has_too_is_shown_once(start: Start) -> None:
    run = start(SERVES, PORTS[0])
    become({PORTS[0]: "ready"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(f"\0krunclient-vm-{run.pid}")
        found = json.loads(KRUNCLIENT.run("--list", "--log-format=json").stdout)
        assert [vm["pid"] for vm in found if vm["port"] in PORTS] == [run.pid]


def test_a_vm_starts_and_is_listed_where_proc_shows_processes_alone(
    start: Start, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount /proc so")
    alone = [*UNSHARE, "sh", "-c", 'mount -t proc -o subset=pid proc /proc; exec "$@"', "sh"]
    run = start(SERVES, PORTS[0], prefix=alone)
    become({PORTS[0]: "ready"})
    ended = replace(KRUNCLIENT, command=[*alone, *KRUNCLIENT.command]).run("--list")
    assert (ended.status, ended.stderr) == (0, b"")
    assert f"\n{run.pid} ".encode() in ended.stdout
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=SOON) == (b"", b"")


def test_the_list_takes_no_arguments() -> None:
    ended = KRUNCLIENT.run("--list", "root")
    assert ended.status == 64
    assert "--list takes options alone" in ended.error


def is_measured_as(path: Path, phase: str) -> bool:
    return path.exists() and path.stat().st_size > 0 and measured(path)[phase] == 1


def test_metrics_follow_a_vm_through_its_life_and_go_with_it(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    run = start(NEVER_STOPS, PORTS[0], f"--metrics={path}")
    wait_until(lambda: is_measured_as(path, "ready"), SOON)
    vm, found = listed(KRUNCLIENT, PORTS)[PORTS[0]], measured(path)
    processes = [run.pid, *(int(child.name) for child in children_of(run.pid))]
    resident = sum(int(status_of(Path(f"/proc/{one}"))["VmRSS"].split()[0]) for one in processes)
    assert abs(found["krunclient_resident_memory_bytes"] / 1024 - resident) < resident / 2
    assert found["krunclient_processor_seconds_total"] <= vm["processor_seconds"]
    assert abs(time.time() - found["krunclient_start_time_seconds"] - vm["uptime_seconds"]) < 1
    run.send_signal(signal.SIGTERM)
    wait_until(lambda: is_measured_as(path, "stopping"), SOON)
    run.send_signal(signal.SIGINT)
    assert run.wait(SOON) == 128 + signal.SIGTERM
    assert not path.exists()


@pytest.mark.parametrize("whole_group", [False, True])
def test_metrics_go_with_a_supervisor_that_was_killed(
    start: Start, tmp_path: Path, whole_group: bool
) -> None:
    path = tmp_path / "vm.prom"
    run = start(SERVES, PORTS[0], f"--metrics={path}", prefix=["setsid"])
    wait_until(lambda: is_measured_as(path, "ready"), SOON)
    families = [run.pid, *(int(child.name) for child in children_of(run.pid))]
    if whole_group:
        os.killpg(run.pid, signal.SIGKILL)
    else:
        run.kill()
    run.wait(SOON)
    wait_until(lambda: not path.exists(), SOON)
    assert all(is_gone_within(SOON, process) for process in families)


def test_a_vm_that_starts_again_at_once_keeps_its_metrics(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    first = start(SERVES, PORTS[0], f"--metrics={path}")
    wait_until(lambda: is_measured_as(path, "ready"), SOON)
    first.kill()
    first.wait(SOON)
    start(SERVES, PORTS[1], f"--metrics={path}")
    wait_until(lambda: is_measured_as(path, "ready"), SOON)
    time.sleep(0.5)
    assert is_measured_as(path, "ready")


def test_two_vms_dont_share_a_file(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    first = start(SERVES, PORTS[0], f"--metrics={path}")
    wait_until(lambda: is_measured_as(path, "ready"), SOON)
    second = start(SERVES, PORTS[1], f"--metrics={path}")
    _, stderr = second.communicate(timeout=SOON)
    assert second.returncode == 75
    assert f"process {first.pid} keeps its own there" in stderr.decode()
    assert is_measured_as(path, "ready")


def test_a_guest_that_prepares_names_in_the_directory_holds_nothing_up(
    start: Start, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    fifo = 'mknodat(AT_FDCWD, "/guest/data/vm.prom", S_IFIFO | 0666, 0);'
    again = f'unlink("/guest/data/vm.prom"); {fifo}'
    vmm = (STOPS_ON_SIGINT, APP_STARTED, LISTENING, f"for (;;) {{ {again} usleep(1000); }}")
    run = start(vmm, PORTS[0], f"--volume={shared}:/data", f"--metrics={shared}/vm.prom")
    become({PORTS[0]: "ready"})
    time.sleep(0.5)
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=SOON)
    assert run.returncode == 3
    assert time.monotonic() - began < SOON


def test_in_a_directory_each_vm_has_a_file_of_its_own(start: Start, tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    for port in PORTS[:2]:
        start(SERVES, port, f"--metrics={directory}")
    files = [directory / f"krunclient-{port}.prom" for port in PORTS[:2]]
    wait_until(lambda: all(is_measured_as(file, "ready") for file in files), SOON)
    assert sorted(directory.iterdir()) == files


def test_metrics_that_cant_be_written_any_more_are_told_once_and_harm_nothing(
    start: Start, tmp_path: Path
) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    run = start(SERVES, PORTS[0], f"--metrics={directory}")
    wait_until(lambda: is_measured_as(directory / f"krunclient-{PORTS[0]}.prom", "ready"), SOON)
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
