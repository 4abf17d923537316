"""Where a wall can't be had, nothing starts, and the one line names it with its remedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from target import MACHINE
from tests.framework.launch import Launcher
from tests.framework.roots import open_to
from tests.framework.users import USER

USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")


@pytest.fixture
def no_user_namespaces() -> Iterator[None]:
    before = USER_NAMESPACES.read_text()
    USER_NAMESPACES.write_text("0")
    yield
    USER_NAMESPACES.write_text(before)


@pytest.fixture
def as_user(launcher: Launcher, scratch: Path) -> Launcher:
    cache = scratch / "user-cache"
    cache.mkdir(mode=0o700, exist_ok=True)
    open_to(USER, cache)
    environment = {**launcher.environment, "XDG_CACHE_HOME": str(cache)}
    return replace(launcher, environment=environment, user=USER)


GUESTS_BY_MACHINE = {
    "x86_64": ", runs 16-bit and 64-bit guests",
    "aarch64": "; whether guests run was not tried",
}


def test_check_runs_guests_of_a_few_instructions_and_says_that_a_vm_can_start(
    launcher: Launcher, as_user: Launcher
) -> None:
    ended = launcher.run("--check")
    lines = ended.stdout.decode().splitlines()
    assert [line for line in lines if line.startswith("missing")] == []
    assert (ended.status, ended.stderr, lines[-1]) == (0, b"", "a VM can start")
    report = json.loads(launcher.run("--check", "--log-format=json").stdout)
    assert report["can_start"] is True
    assert all(check["ok"] and check["found"] for check in report["checks"])
    # /usr of an emulated host is an overlay, which a user can't put another one on.
    for line in (*lines, *as_user.run("--check").stdout.decode().splitlines()):
        if " KVM: " in line:
            assert line.startswith("ok ")
            assert line.endswith(f" API version 12{GUESTS_BY_MACHINE[MACHINE]}")


@pytest.mark.usefixtures("no_user_namespaces")
def test_without_user_namespaces_a_user_gets_69_and_root_starts(
    launcher: Launcher, as_user: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root("exit 3")
    open_to(USER, root)
    ended = as_user.run(root, str(port))
    assert ended.status == 69
    assert "a user namespace" in ended.error
    assert "sysctl user.max_user_namespaces" in ended.error
    report = as_user.run("--check")
    assert report.status == 69
    assert b"missing  sandbox: a user namespace" in report.stdout
    assert b"missing  user namespaces: a user namespace" in report.stdout
    assert b"user.max_user_namespaces=0" in launcher.run("--check").stdout
    assert launcher.run(root, str(port)).status == 3


def test_without_a_sandbox_the_root_is_read_only_and_the_port_still_claimed(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root("true")
    for name in ("dev", "proc", "sys"):
        (root / name).mkdir()
    (root / "bin/app").write_text("#!/bin/busybox sh\n/bin/busybox touch /x || exit 9\n")
    ended = launcher.run("--sandbox=off", root, str(port))
    assert ended.status == 9, ended
    assert b"Read-only file system" in ended.stderr
