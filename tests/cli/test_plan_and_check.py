"""--plan shows all that would be done and no secret; --check says what the host lacks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from krunclient import __version__
from krunclient.options import OPTIONS
from tests.framework import fake_vmm, recorder
from tests.framework.launch import Launcher
from tests.framework.namespaces import UNSHARE, with_own_dev
from tests.framework.users import USER

FAKE_KVM = with_own_dev()


def test_the_plan_is_one_json_object_with_the_secret_hidden(root: Path, tmp_path: Path) -> None:
    launcher, (*libraries, _) = fake_vmm.prepare(tmp_path)
    ended = launcher.run(
        *libraries, "--plan", "--memory=256", "--env=A=hidden", root, "30555", "--", "x y",
        env={"HOST": "hidden", "INTERNAL_SECRET": "hidden"},
    )  # fmt: skip
    plan = json.loads(ended.stdout)
    assert (ended.status, ended.stderr) == (0, b"")
    assert plan["root_path"] == str(root)
    assert (plan["guest_port"], plan["memory_mib"]) == (80, 256)
    assert plan["policy"] == {
        "listen": "127.0.0.1:30555",
        "allow": ["127.0.0.1:8443"],
        "client_timeout": 20,
    }
    assert plan["app_arguments"] == ["x y"]
    assert plan["variables"]["INTERNAL_SECRET"] == plan["variables"]["A"] == "***"
    assert (plan["libraries"]["libkrun_origin"], plan["libraries"]["api"]) == ("given", "2.x")
    assert plan["confinement"]["user_namespace"] == (os.geteuid() != 0)
    assert b"hidden" not in ended.stdout


def test_the_plan_says_where_each_value_comes_from(root: Path, tmp_path: Path) -> None:
    launcher, (*libraries, _) = fake_vmm.prepare(tmp_path)
    ended = launcher.run(
        *libraries, "--plan", "--memory=256", root, "30555",
        env={"KRUNCLIENT_MEMORY": "512", "KRUNCLIENT_CPUS": "2", "KRUNCLIENT_USER": ""},
    )  # fmt: skip
    plan = json.loads(ended.stdout)
    origins = plan["origins"]
    assert (plan["memory_mib"], origins["--memory"]) == (256, "--memory")
    assert (plan["vcpus"], origins["--cpus"]) == (2, "KRUNCLIENT_CPUS")
    assert origins["--libkrun"] == "--libkrun"
    assert {origins["--user"], origins["--exec"], origins["--env"]} == {"default"}
    assert list(origins) == [option.name for option in OPTIONS if not option.action]


def test_the_plan_needs_a_kvm_as_a_launch_does(launcher: Launcher, root: Path) -> None:
    host = replace(launcher, command=[*with_own_dev(), *launcher.command])
    assert "/dev/kvm" in host.run("--plan", root, "30555").error


def test_a_machine_that_is_not_served_is_69_by_launch_plan_and_check(
    launcher: Launcher, root: Path
) -> None:
    other = replace(launcher, command=["setarch", "i686", *launcher.command])
    for words in ([], ["--plan"]):
        ended = other.run(*words, root, "30555")
        assert ended.status == 69
        assert "i686: this architecture is not served" in ended.error
    ended = other.run("--check")
    assert (ended.status, ended.stderr) == (69, b"")
    first, last = ended.stdout.decode().splitlines()
    assert first.startswith("missing  architecture: i686: this architecture is not served")
    assert last == "no VM can start"
    assert other.run("--version").status == 0


def test_check_takes_every_option_of_a_launch_and_makes_no_overlay(
    launcher: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    volumes = (f"--volume={tmp_path}/volume:/local/man", f"--volume={tmp_path}:/local/man/below")
    for overlay in (f"--overlay={tmp_path}/overlay", "--overlay=/usr/overlay", "--state-dir=/s"):
        ended = launcher.run("--check", overlay, *volumes)
        lines = ended.stdout.decode().splitlines()
        assert any(line.startswith("ok       sandbox: ") for line in lines), lines
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]
    assert not list((tmp_path / "volume").iterdir())
    for refused in (
        ("--sandbox=off", "--overlay=/x"),
        ("--state-dir=/s", "--overlay=/x"),
        ("--volume=/nowhere:/x",),
    ):
        assert launcher.run("--check", *refused).status == 64, refused
    assert launcher.run("--check", "root").status == 64
    without = launcher.run("--check", "--sandbox=off").stdout.decode().splitlines()
    assert "ok       sandbox: off" in without


@pytest.mark.parametrize("ends", ["_exit(0)", "raise(SIGBUS)"])
def test_a_library_that_ends_its_process_is_told_by_check(tmp_path: Path, ends: str) -> None:
    launcher, (*libraries, _) = fake_vmm.prepare(tmp_path)
    hostile = tmp_path / "libkrunfw.so.5"
    hostile.unlink()
    recorder.compile_library(
        hostile,
        "#include <signal.h>\n#include <unistd.h>\n"
        f"__attribute__((constructor)) static void end(void) {{ {ends}; }}",
    )
    ended = launcher.run("--check", *libraries)
    assert ended.status == 69
    (line,) = (line for line in ended.stdout.decode().splitlines() if " libkrun: " in line)
    assert line.startswith("missing  libkrun: ")
    assert "was ended by" in line


def test_a_library_that_cant_be_loaded_is_told_in_the_loaders_words(tmp_path: Path) -> None:
    """The first that is asked for, and not what a later one was."""
    launcher, (*libraries, root) = fake_vmm.prepare(tmp_path)
    lacking = tmp_path / "libkrunfw.so.5"
    lacking.unlink()
    recorder.compile_library(lacking, "extern int missing; int *needs(void) { return &missing; }")
    ended = launcher.run("--check", *libraries)
    assert f"libkrun: {lacking}: undefined symbol: missing; give" in ended.stdout.decode()
    ended = launcher.run(*libraries, root, "30555")
    told = f"a library can't be loaded: {lacking}: undefined symbol: missing; give another"
    assert (ended.status, told in ended.error) == (69, True), ended.error


def test_a_library_that_does_not_fit_in_memory_is_70_and_one_that_may_not_be_run_is_69(
    tmp_path: Path,
) -> None:
    launcher, (*libraries, root) = fake_vmm.prepare(tmp_path)
    large = tmp_path / "libkrunfw.so.5"
    large.unlink()
    recorder.compile_library(large, "char large[1 << 28];")
    assert launcher.run(*libraries, root, "30555").status == fake_vmm.STATUS
    limited = ["sh", "-c", 'ulimit -v 250000; exec "$@"', "sh", *launcher.command]
    mount = f"mount -n --bind {tmp_path} {tmp_path}; mount -n -o remount,bind,noexec {tmp_path}"
    closed = [*UNSHARE, "sh", "-c", f'{mount}; exec "$@"', "sh", *launcher.command]
    for command, status in (limited, 70), (closed, 69):
        ended = replace(launcher, command=command).run(*libraries, root, "30555")
        assert "failed to map segment from shared object; " in ended.error
        assert ended.status == status, ended.error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_check_looks_as_the_user_that_a_launch_would_become(launcher: Launcher) -> None:
    """Whose libraries are in root's own cache, closed to that user."""
    as_user = launcher.run("--check", f"--user={USER}").stdout.decode().splitlines()
    as_root = launcher.run("--check").stdout.decode().splitlines()
    for name in ("libkrun", "libkrunfw", "user namespaces", "sandbox"):
        found = [
            next(line for line in lines if f" {name}: " in line) for lines in (as_user, as_root)
        ]
        assert [line[:2] for line in found] == ["ok", "ok"], found


def test_without_proc_or_dev_null_there_is_one_clear_line(tmp_path: Path) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path)
    for take_away, says in (
        ("mount -n -t tmpfs none /dev", "/dev/kvm: open: no such file or directory; see what"),
        ("mount -n -t tmpfs none /proc", "/proc: it is not mounted; mount it"),
    ):
        command = [*UNSHARE, "sh", "-c", f'{take_away}; exec "$@"', "sh", *launcher.command]
        ended = replace(launcher, command=command).run(*arguments, "30555")
        assert ended.status == 69
        assert says in ended.error


def test_check_names_what_is_missing_with_its_remedy(launcher: Launcher) -> None:
    host = replace(launcher, command=[*with_own_dev(), *launcher.command])
    ended = host.run("--check", "--libkrun", "/nowhere/libkrun.so")
    assert ended.status == 69
    lines = ended.stdout.decode().splitlines()
    (kvm,) = (line for line in lines if line.startswith("missing  KVM: /dev/kvm"))
    assert "load kvm_intel or kvm_amd" in kvm
    (krun,) = (line for line in lines if line.startswith("missing  libkrun: "))
    assert "give another by --libkrun" in krun
    assert lines[-1] == "no VM can start"


def test_check_names_the_libraries_that_it_found(launcher: Launcher) -> None:
    lines = launcher.run("--check").stdout.decode().splitlines()
    (krun,) = (line for line in lines if line.startswith("ok       libkrun: "))
    assert krun.endswith("libkrun.so (bundled), API 2.x")
    (krunfw,) = (line for line in lines if line.startswith("ok       libkrunfw: "))
    assert "Linux 6.12" in krunfw


def test_version_and_help_go_to_stdout(launcher: Launcher) -> None:
    assert launcher.run("--version").stdout == f"krunclient {__version__}\n".encode()
    assert launcher.run("--help").stdout.startswith(b"usage: krunclient ")
    assert launcher.run("--help", "/nowhere").status == 0
