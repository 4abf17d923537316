"""The exit status is the app's own, or says truly that there is none."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from target import ARCHITECTURE
from tests.framework.launch import Launcher
from tests.framework.roots import GRACEFUL_APP, SMALL, STATUS_WHEN_ASKED

NewRoot = Callable[..., Path]


@pytest.mark.parametrize("status", [0, 7, 127])
def test_the_apps_status_comes_back(
    launcher: Launcher, new_root: NewRoot, port: int, status: int
) -> None:
    ended = launcher.run(new_root(f"exit {status}"), str(port))
    assert (ended.status, ended.stderr) == (status, b"")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_death_by_signal_n_is_128_plus_n(
    launcher: Launcher, new_root: NewRoot, port: int, number: signal.Signals
) -> None:
    ended = launcher.run(new_root(f"kill -{int(number)} $$"), str(port))
    assert ended.status == 128 + number


def test_a_kernel_panic_is_70_and_its_message_is_told(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    # The kernel has no sysrq; a panic for lack of memory is the one that root can ask for.
    root = new_root("echo 2 >/proc/sys/vm/panic_on_oom; tail /dev/zero; exit 0")
    ended = launcher.run("--memory", SMALL, root, str(port))
    assert ended.status == 70
    assert "Kernel panic - not syncing: Out of memory" in ended.error


def test_a_reboot_by_the_guest_is_70(launcher: Launcher, new_root: NewRoot, port: int) -> None:
    ended = launcher.run(new_root("reboot -f; sleep 60"), str(port))
    assert ended.status == 70
    assert "without the app's status" in ended.error


def test_a_guest_too_small_for_its_kernel_is_70(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root("tail /dev/zero")
    least = str(ARCHITECTURE.least_memory_mib)
    assert launcher.run("--memory", least, root, str(port)).status == 128 + signal.SIGKILL


def test_a_program_that_the_guest_cant_execute_is_126(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    # More than the 2 MiB that execve(2) takes in the guest; a larger stack lets them get here.
    variables = [f"--env=V{number}={'x' * 100_000}" for number in range(24)]
    ended = launcher.run(
        new_root("exit 0"),
        str(port),
        *variables,
        preexec=lambda: resource.setrlimit(resource.RLIMIT_STACK, (2**26, 2**26)),
    )
    assert ended.status == 126


def test_a_program_that_is_gone_when_the_guest_looks_is_127(
    launcher: Launcher, new_root: NewRoot, port: int, scratch: Path
) -> None:
    nothing = scratch / "nothing"
    nothing.mkdir()
    ended = launcher.run(new_root("exit 0"), str(port), f"--volume={nothing}:/bin:ro")
    nothing.rmdir()
    assert ended.status == 127


def test_a_root_that_is_deleted_while_it_runs_ends_as_any_other(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(GRACEFUL_APP)
    server = launcher.start_app(root, port)
    shutil.rmtree(root)
    ended = server.stop(signal.SIGTERM)
    assert ended.status == STATUS_WHEN_ASKED
    assert b"krunclient" not in ended.stderr  # the guest itself finds no program any more
