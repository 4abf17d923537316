"""Each limit of a VM is reached by a real guest, and holds; without the right to it, it is told."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.launch import Launcher
from tests.framework.processes import children_of, processor_seconds
from tests.framework.roots import GRACEFUL_APP, open_to
from tests.framework.users import USER

NewRoot = Callable[..., Path]
TREE = Path("/sys/fs/cgroup")
MEMORY_MAX_MIB = 200
QUOTA_PERCENT = 20
SECONDS = 10
BUSY = "echo started; while :; do :; done"
# The guest has more RAM than that.
GREEDY = "mkdir /t; mount -t tmpfs none /t; dd if=/dev/zero of=/t/x bs=1M count=400; echo all"


@pytest.fixture(scope="module", autouse=True)
def tree() -> Iterator[None]:
    """An emulated host has none mounted."""
    is_mounted = (TREE / "cgroup.controllers").exists()
    if not is_mounted:
        subprocess.run(["mount", "-t", "cgroup2", "none", TREE], check=True)
    yield
    if not is_mounted:
        subprocess.run(["umount", "--lazy", TREE], check=True)


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup that is a user's, as systemd delegates it."""
    (TREE / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    directory = TREE / "delegated"
    directory.mkdir()
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(directory / name, USER, USER)
    yield directory
    for path in (*sorted(directory.rglob("*/"), reverse=True), directory):
        remove(path)


def remove(cgroup: Path) -> None:
    """When its processes have ended."""
    deadline = time.monotonic() + 30
    while True:
        try:
            cgroup.rmdir()
            return
        except OSError:  # a thread of one that was killed is still there
            assert time.monotonic() < deadline
            time.sleep(0.1)


def inside(launcher: Launcher, cgroup: Path, user: int) -> Launcher:
    """Started there, as a user: only root can put a process there."""
    script = f'echo 0 >{cgroup}/cgroup.procs; exec setpriv --reuid={user} --regid={user} "$@"'
    command = ["sh", "-c", script, "sh", "--clear-groups", *launcher.command]
    return replace(launcher, command=command, user=None)


@pytest.fixture(params=["root", "user"])
def limited(
    launcher: Launcher, users_launcher: Launcher, delegated: Path, request: pytest.FixtureRequest
) -> Launcher:
    """Root in the first cgroup of all, and a user in a delegated one."""
    return launcher if request.param == "root" else inside(users_launcher, delegated, USER)


def left_over() -> list[Path]:
    return [path for path in TREE.rglob("krunclient-*") if path.is_dir()]


def test_a_guest_that_computes_for_ever_has_no_more_than_its_share(
    limited: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(BUSY)
    open_to(USER, root)
    process = limited.start_app(root, port, f"--cpu-quota={QUOTA_PERCENT}").process
    try:
        (vmm,) = children_of(process.pid)
        before = processor_seconds(int(vmm.name))
        time.sleep(SECONDS)
        used = (processor_seconds(int(vmm.name)) - before) / SECONDS
        assert 0.5 * QUOTA_PERCENT < 100 * used < 1.25 * QUOTA_PERCENT
    finally:
        process.kill()
        process.communicate()


def test_a_guest_that_takes_too_much_memory_ends_with_70_and_the_reason(
    limited: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(GREEDY)
    open_to(USER, root)
    ended = limited.run(root, str(port), f"--memory-max={MEMORY_MAX_MIB}")
    assert (ended.status, ended.stdout) == (70, b"")
    assert "killed by signal 9 (it took more than --memory-max)" in ended.stderr.decode()
    enough = limited.run(root, str(port), "--memory-max=1000")
    assert (enough.status, enough.stdout) == (0, b"all\n")
    assert left_over() == []


def test_a_vm_of_too_many_threads_does_not_start_and_one_of_few_does(
    limited: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root("exit 3")
    open_to(USER, root)
    few = limited.run(root, str(port), "--pids-max=2")
    assert few.status == 70, few
    assert limited.run(root, str(port), "--pids-max=100").status == 3
    assert left_over() == []


def test_a_stop_reaches_a_vm_that_has_next_to_no_processor(
    limited: Launcher, new_root: NewRoot, port: int, slowness: float
) -> None:
    root = new_root(GRACEFUL_APP)
    open_to(USER, root)
    process = limited.start_app(root, port, "--cpu-quota=50", "--grace-period=0.1").process
    began = time.monotonic()
    process.terminate()
    process.communicate()
    assert process.returncode in (6, 128 + 15)
    assert time.monotonic() - began < 1 + 0.2 * slowness
    assert left_over() == []


def test_what_a_killed_supervisor_left_is_removed_by_the_next(
    limited: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(GRACEFUL_APP)
    open_to(USER, root)
    process = limited.start_app(root, port, "--pids-max=100").process
    process.kill()
    process.communicate()
    (root / "bin/app").write_text("#!/bin/sh\nexit 3\n")
    assert left_over() != []
    assert limited.run(root, str(port), "--pids-max=100").status == 3
    assert left_over() == []


def test_without_the_right_to_it_a_limit_is_a_clear_error(
    users_launcher: Launcher, launcher: Launcher, delegated: Path, new_root: NewRoot, port: int
) -> None:
    root = new_root("exit 3")
    open_to(USER, root)
    words = (root, str(port))
    for limit in ("--cpu-quota=50", "--memory-max=600", "--pids-max=100"):
        ended = users_launcher.run(*words, limit)
        assert ended.status == 77
        assert "limits can't be set: /sys/fs/cgroup: permission denied; start it in" in ended.error
        assert b"missing  cgroups: " in users_launcher.run("--check", limit).stdout
    with subprocess.Popen(["sleep", "1000"]) as other:
        (delegated / "cgroup.procs").write_text(str(other.pid))
        ended = inside(users_launcher, delegated, USER).run(*words, "--pids-max=100")
        assert ended.status == 69
        assert "other processes are in that cgroup; start it in a cgroup of its own" in ended.error
        other.kill()
    (TREE / "cgroup.subtree_control").write_text("-cpu")
    ended = inside(users_launcher, delegated, USER).run(*words, "--cpu-quota=50")
    assert ended.status == 69
    assert f"{delegated}: it has no controller cpu" in ended.error
    assert launcher.run(*words).status == 3
