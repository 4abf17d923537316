"""What can't start is refused before any VM: a true status, one line, no traceback, at once."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.framework import fake_vmm, recorder
from tests.framework.elf import elf
from tests.framework.launch import Ended, Launcher
from tests.framework.namespaces import with_own_dev
from tests.framework.paths import EXECUTABLE

PORT = "30555"
MIN_SECONDS, TIMES = 0.3, 10
Change = Callable[[Path], object]


def refused(ended: Ended, status: int, text: str) -> None:
    assert ended.status == status, ended.stderr
    assert text in ended.error
    assert "Traceback" not in ended.error
    assert ended.error.count("; ") >= 1
    assert ended.stdout == b""
    assert ended.seconds < at_once()


@cache
def at_once() -> float:
    """Some times what it takes here to tell the version, in seconds."""
    with tempfile.TemporaryDirectory() as cache:
        version = Launcher([EXECUTABLE], {"XDG_CACHE_HOME": cache})
        return max(MIN_SECONDS, TIMES * min(version.run("--version").seconds for _ in range(3)))


def app(root: Path) -> Path:
    return root / "bin/app"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda root: root.rename(root.with_name("away")), "no such file or directory"),
        (lambda root: (root.rename(root.with_name("away")), root.touch()), "not a directory"),
        (lambda root: app(root).unlink(), "does not exist"),
        (lambda root: app(root).chmod(0o644), "is not executable"),
        (lambda root: app(root).write_bytes(elf(machine=183)), "not for the architecture"),
        (lambda root: app(root).write_text("#!/bin/sh\n"), "interpreter /bin/sh does not exist"),
    ],
)
def test_a_root_without_a_runnable_program_is_66(
    launcher: Launcher, root: Path, change: Change, text: str
) -> None:
    change(root)
    refused(launcher.run(root, PORT), 66, text)


@pytest.mark.parametrize("port", ["0", "65536", "abc", "-1x", ""])
def test_a_port_that_is_none_is_64(launcher: Launcher, root: Path, port: str) -> None:
    refused(launcher.run("--", root, port) if not port else launcher.run(root, port), 64, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--memory", "0"],
        ["--cpus", "x"],
        ["--no-such-option"],
        ["--exec", "app"],
        ["extra"],
        ["--volume", "/nowhere:/data"],
        ["--volume", "/etc/passwd:/data"],
        ["--sandbox", "off", "--allow", "none"],
        ["--sandbox", "off", "--bind", "0.0.0.0"],
        ["--grace-period", "-1"],
        ["--ready-timeout", "soon"],
        ["--log-format", "xml"],
    ],
)
def test_a_wrong_option_is_64(launcher: Launcher, root: Path, arguments: list[str]) -> None:
    refused(launcher.run(root, PORT, *arguments), 64, "")


@pytest.mark.parametrize("option", ["--overlay=", "--state-dir=", "--metrics=", "--volume=:/db"])
def test_an_empty_path_is_64_and_not_the_working_directory(
    launcher: Launcher, root: Path, option: str
) -> None:
    refused(launcher.run("--plan", root, PORT, option), 64, "can't be used")


@pytest.mark.parametrize("option", ["--overlay=db", "--metrics=db", "--volume=db:/db"])
def test_a_relative_path_in_a_directory_that_is_gone_is_64(
    launcher: Launcher, root: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "gone").mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    gone = replace(launcher, command=["sh", "-c", script, tmp_path / "gone", *launcher.command])
    ended = gone.run("--plan", root, PORT, option)
    assert ended.status == 64
    last = ended.stderr.decode().splitlines()[-1]  # the shell may have said so before
    assert "can't be used: db: the working directory is gone; give a path" in last


def test_a_volume_that_this_user_cant_get_to_is_77(launcher: Launcher, root: Path) -> None:
    # A directory of another owner is closed to the namespace's root, whose powers are its own.
    closed = with_own_dev("mkdir -p /dev/closed/db", "chmod 0 /dev/closed")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
    host = replace(launcher, command=[*closed, *drop, *launcher.command])
    volume = "--volume=/dev/closed/db:/db"
    refused(host.run("--plan", root, PORT, volume), 77, "/dev/closed/db: permission denied")
    given = ("--libkrun", "/dev/closed/db/libkrun.so")
    refused(host.run("--plan", root, PORT, *given), 69, "libkrun.so: permission denied")


def test_no_argument_at_all_is_64(launcher: Launcher) -> None:
    refused(launcher.run(), 64, "ROOT_PATH and LOCAL_PORT are needed")


@pytest.mark.parametrize("name", ["HOST", "INTERNAL_SECRET"])
def test_a_value_that_is_no_utf8_is_64_and_not_shown(
    launcher: Launcher, root: Path, name: str
) -> None:
    ended = launcher.run(root, PORT, env={name: b"hidden\xff"})
    refused(ended, 64, f"variable {name}: it is not UTF-8")
    assert "hidden" not in ended.error


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::"])
def listener(request: pytest.FixtureRequest) -> Iterator[int]:
    address: str = request.param
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((address, 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_that_something_listens_on_is_75(tmp_path: Path, listener: int) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)  # the KVM here may be closed to this user
    ended = launcher.run(*arguments, str(listener))
    assert ended.status == 75
    assert "address already in use" in ended.error


def test_no_kvm_is_69(launcher: Launcher, root: Path) -> None:
    host = replace(launcher, command=[*with_own_dev(), *launcher.command])
    refused(host.run(root, PORT), 69, "/dev/kvm: no such file or directory")


def test_a_kvm_that_is_something_else_is_69(launcher: Launcher, root: Path) -> None:
    host = replace(launcher, command=[*with_own_dev(": >/dev/kvm"), *launcher.command])
    refused(host.run(root, PORT), 69, "/dev/kvm: inappropriate ioctl for device")


def test_no_permission_on_kvm_is_77(launcher: Launcher, root: Path) -> None:
    # A directory of another owner is closed to the namespace's root, whose powers are its own.
    closed = with_own_dev(": >/dev/kvm", "chmod 0 /dev/kvm")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
    host = replace(launcher, command=[*closed, *drop, *launcher.command])
    refused(host.run(root, PORT), 77, "/dev/kvm: permission denied")


def test_a_library_that_is_not_there_is_69(launcher: Launcher, root: Path) -> None:
    refused(launcher.run("--libkrun", "/nowhere/libkrun.so", root, PORT), 69, "/nowhere/libkrun.so")
    refused(launcher.run("--libkrunfw", "/nowhere/x.so", root, PORT), 69, "/nowhere/x.so")


def test_a_libkrun_without_the_symbols_is_69_and_names_one(
    launcher: Launcher, root: Path, tmp_path: Path
) -> None:
    libkrun, libkrunfw = tmp_path / "libkrun.so", tmp_path / "libkrunfw.so.5"
    recorder.compile_library(
        libkrun, '__attribute__((used)) static const char name[] = "libkrunfw.so.5";'
    )
    recorder.compile_library(libkrunfw, "int krunfw_get_version(void) { return 5; }")
    given = ("--libkrun", libkrun, "--libkrunfw", libkrunfw)
    refused(launcher.run(*given, "--plan", root, PORT), 69, "no function krun_set_root or krun_add")


def test_a_pair_that_does_not_belong_together_is_69(
    launcher: Launcher, root: Path, tmp_path: Path
) -> None:
    krunfw = tmp_path / "libkrunfw.so.4"
    recorder.compile_library(krunfw, "int krunfw_get_version(void) { return 4; }")
    refused(launcher.run("--libkrunfw", krunfw, root, PORT), 69, "needs libkrunfw.so.5")


def test_an_address_that_is_not_the_hosts_is_69(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    for address in ("192.0.2.1", "fe80::1"):
        ended = launcher.run(*arguments, PORT, f"--bind={address}")
        assert ended.status == 69
        assert "give an address of this host by --bind" in ended.error


def test_an_error_is_one_json_object_where_that_is_asked_for(
    launcher: Launcher, root: Path
) -> None:
    for arguments, env in (
        (["--log-format=json", "--memory=0"], {}),
        (["--log-format", "json", "--no-such-option"], {}),
        (["--memory=0"], {"KRUNCLIENT_LOG_FORMAT": "json"}),
    ):
        ended = launcher.run(root, PORT, *arguments, env=env)
        found = json.loads(ended.stderr)
        assert (ended.status, found["status"], found["event"]) == (64, 64, "failed")
