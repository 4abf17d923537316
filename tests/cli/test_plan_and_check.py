"""--plan shows all that would be done and no secret; --check says what the host lacks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.framework.launch import Launcher
from tests.framework.namespaces import with_own_dev

FAKE_KVM = with_own_dev()


def test_the_plan_is_one_json_object_with_the_secret_hidden(launcher: Launcher, root: Path) -> None:
    ended = launcher.run(
        "--plan", "--memory=256", "--env=A=hidden", root, "30555", "--", "x y",
        env={"HOST": "hidden", "INTERNAL_SECRET": "hidden"},
    )  # fmt: skip
    if ended.status == 69:
        assert "/dev/kvm" in ended.error
        return
    plan = json.loads(ended.stdout)
    assert plan["root_path"] == str(root)
    assert (plan["guest_port"], plan["memory_mib"]) == (80, 256)
    assert plan["policy"] == {"listen": "127.0.0.1:30555", "allow": ["127.0.0.1:8443"]}
    assert plan["app_arguments"] == ["x y"]
    assert plan["variables"]["INTERNAL_SECRET"] == plan["variables"]["A"] == "***"
    assert plan["libraries"]["origin"] == "bundled"
    assert plan["libraries"]["api"] == "2.x"
    assert b"hidden" not in ended.stdout


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
    assert launcher.run("--version").stdout == b"krunclient 0.1.0\n"
    assert launcher.run("--help").stdout.startswith(b"usage: krunclient ")
    assert launcher.run("--help", "/nowhere").status == 0
