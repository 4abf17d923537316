"""What the host's /proc says of a running VMM: nothing that it does not need."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from krunclient.sandbox.confinement import CAPABILITIES
from tests.framework.launch import Launcher, Server
from tests.framework.ports import next_port
from tests.framework.processes import is_gone_within, status_of
from tests.framework.roots import HTTPD, busybox_root, open_to
from tests.framework.users import USER

NewRoot = Callable[..., Path]
SECRET = "5ecret-that-must-not-be-found"


def serve(launcher: Launcher, directory: Path) -> Server:
    secrets = {"INTERNAL_SECRET": SECRET, "HOST": SECRET}
    root = busybox_root(directory, HTTPD)
    open_to(launcher.user or 0, root)
    return launcher.serve(root, next_port(), f"--env=OTHER={SECRET}", env=secrets)


@pytest.fixture(scope="module")
def server(any_launcher: Launcher, scratch: Path) -> Iterator[Server]:
    """One that the tests look at and leave as it is."""
    directory = scratch / "looked-at"
    with serve(any_launcher, directory) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def doomed(any_launcher: Launcher, scratch: Path) -> Iterator[Server]:
    """One that a test ends."""
    directory = scratch / "doomed"
    with serve(any_launcher, directory) as running:
        yield running
    shutil.rmtree(directory)


def test_the_vmm_has_no_privilege_that_it_does_not_need(server: Server) -> None:
    vmm = server.vmm
    kept = sum(1 << number for number in CAPABILITIES.values())
    for thread in (vmm / "task").iterdir():
        status = status_of(thread)
        assert int(status["CapEff"], 16) & ~kept == 0
        assert int(status["CapPrm"], 16) & ~kept == 0
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert int(status["CapBnd"], 16) & ~kept == 0
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    limits = (vmm / "limits").read_text()
    (core,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["1", "1"]


def test_the_vmm_sees_no_file_of_the_host_but_the_guests_and_kvm(server: Server) -> None:
    vmm = server.vmm
    root = vmm / "root"
    assert sorted(path.name for path in root.iterdir()) == [
        "dev",
        "guest",
        "layer",
        "lower",
        "proc",
    ]
    assert [path.name for path in (root / "dev").iterdir()] == ["kvm"]
    assert not list((root / "lower").iterdir())
    assert not list((root / "layer").iterdir())
    targets = [line.split()[4] for line in (vmm / "mountinfo").read_text().splitlines()]
    assert sorted(targets) == ["/", "/dev/kvm", "/guest", "/proc/self/fd"]
    (top,) = (line for line in (vmm / "mountinfo").read_text().splitlines() if " / / " in line)
    assert "ro,nosuid,nodev,noexec" in top


def test_the_vmm_has_no_descriptor_of_the_hosts_files(server: Server) -> None:
    allowed = ("/guest", "/dev/kvm", "/proc/", "/dev/null")
    for descriptor in (server.vmm / "fd").iterdir():
        target = os.readlink(descriptor)
        anonymous = not target.startswith("/")
        assert anonymous or target.startswith(allowed) or target == "/", target


def test_the_secret_is_nowhere_on_the_host(server: Server, scratch: Path) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                assert SECRET.encode() not in (process / name).read_bytes(), process
            except (FileNotFoundError, ProcessLookupError):
                continue
    assert (server.vmm / "environ").read_bytes().strip(b"\0") == b""
    # What was written since the tests began; the app itself, in its root, is none of ours.
    files = [
        "find",
        "/tmp",
        "/run",
        "/var/tmp",
        "/dev/shm",
        "-xdev",
        "-maxdepth",
        "3",
        "-type",
        "f",
    ]
    files += ["-newer", str(scratch / "krunclient"), "-not", "-path", "*/looked-at/*"]
    search = [*files, "-exec", "grep", "-lsF", SECRET, "{}", "+"]
    assert not subprocess.run(search, capture_output=True, text=True).stdout


def test_a_vmm_that_crashes_leaves_no_core(doomed: Server, scratch: Path) -> None:
    Path("/proc/sys/kernel/core_pattern").write_text(f"{scratch}/core.%p")
    os.kill(int(doomed.vmm.name), signal.SIGABRT)
    _, stderr = doomed.process.communicate(timeout=20)
    assert doomed.process.returncode == 70, stderr
    assert not list(scratch.glob("core.*"))


def test_nothing_remains_a_second_after_the_supervisor_was_killed(doomed: Server) -> None:
    vmm = doomed.vmm
    doomed.process.kill()
    doomed.process.communicate()
    assert is_gone_within(1, int(vmm.name))


def test_as_root_the_vmm_runs_as_the_user_that_was_named(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(HTTPD)
    open_to(USER, root)  # what is root's stays root's: that user could not write there
    with launcher.serve(root, port, f"--user={USER}:{USER}") as server:
        status = status_of(server.vmm)
        assert status["Uid"].split() == [str(USER)] * 4
        assert status["Gid"].split() == [str(USER)] * 4
        assert status["Groups"] == ""
        assert server.get() == b"hello\n"
