"""The plan is all that a launch does, as data, with no secret in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from krunclient import plan
from krunclient.errors import HostError
from krunclient.model import Features
from krunclient.plan import Plan
from tests.framework.stages import V1_13, V1_19, V2, facts, planned, settings


def printed(of: Plan) -> dict[str, Any]:
    found = json.loads(plan.as_json(of, {}))
    assert isinstance(found, dict)
    return found


def kinds(of: Plan) -> list[str]:
    return [step.split()[0] for step in printed(of)["confinement"]["mounts"]]


def test_it_contains_the_config_and_the_facts() -> None:
    found = planned("--memory=256")
    assert found.config == settings("--memory=256")
    assert found.facts == facts()


def test_as_json_it_has_each_setting_and_hides_each_secret() -> None:
    env = {b"HOST": b"hidden", b"INTERNAL_SECRET": b"hidden"}
    shown = printed(planned("--memory=256", "--env=A=hidden", "--", "x y", env=env))
    assert (shown["root_path"], shown["machine"]) == ("/srv/app", "x86_64")
    assert (shown["vcpus"], shown["memory_mib"], shown["exec_path"]) == (1, 256, "/bin/app")
    assert (shown["guest_port"], shown["host_port"]) == (80, 80)
    assert shown["policy"] == {
        "listen": "127.0.0.1:30000",
        "allow": ["127.0.0.1:8443"],
        "client_timeout": 20,
    }
    assert shown["app_arguments"] == ["x y"]
    assert shown["variables"]["INTERNAL_SECRET"] == shown["variables"]["A"] == "***"
    assert shown["libraries"]["api"] == "2.x"
    assert (shown["grace_period"], shown["ready_timeout"]) == (8, None)
    assert "hidden" not in json.dumps(shown)


@pytest.mark.parametrize(("uid", "user_namespace"), [(0, False), (1000, True)])
def test_a_start_as_root_makes_no_user_namespace_and_any_other_does(
    uid: int, user_namespace: bool
) -> None:
    confinement = printed(planned(of=facts(vmm_uid=uid)))["confinement"]
    assert confinement["user_namespace"] is user_namespace
    (overlay,) = (step for step in confinement["mounts"] if step.startswith("Overlay "))
    (device,) = (step for step in confinement["mounts"] if step.startswith("BindDevice "))
    assert f"user_xattr={user_namespace}" in overlay
    assert f"user_namespace={user_namespace}" in device
    assert ("RLIMIT_NPROC" in confinement["limits"]) is user_namespace


@pytest.mark.parametrize(("features", "needs_file"), [(V1_13, True), (V1_19, False), (V2, False)])
def test_the_file_for_init_is_mounted_where_libkrun_cant_serve_it(
    features: Features, needs_file: bool
) -> None:
    assert ("InitFile" in kinds(planned(of=facts(features)))) is needs_file


def test_without_a_sandbox_there_is_no_confinement_and_libkrun_gets_the_hosts_port() -> None:
    found = planned("--sandbox=off")
    assert found.confinement is None
    assert found.host_port == 30000
    assert printed(found)["confinement"] is None


def test_without_a_sandbox_a_libkrun_that_cant_keep_the_root_whole_is_refused() -> None:
    planned("--sandbox=off", of=facts(V1_19))
    planned(of=facts(V1_13))
    with pytest.raises(HostError, match="krun_fs_add_overlay_file"):
        planned("--sandbox=off", of=facts(V1_13))


def test_libkruns_own_policy_has_each_allowed_address_once() -> None:
    found = planned("--allow=[::1]:5", "--allow=10.0.0.1:6", "--allow=10.0.0.1:7")
    assert found.egress_cidrs == ("0:0:0:0:0:0:0:1/128", "10.0.0.1/32")
    assert planned("--allow=none").egress_cidrs == ()


def test_a_root_that_is_set_the_old_way_takes_a_window_of_memory() -> None:
    old, new = planned(of=facts(V1_13)).confinement, planned().confinement
    assert old is not None
    assert new is not None
    assert old.limits["RLIMIT_DATA"] - new.limits["RLIMIT_DATA"] == 512 * 2**20
