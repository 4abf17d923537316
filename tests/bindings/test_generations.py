"""Which functions are called, for each generation of the API, as a recording library sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from krunclient.bindings.libkrun import LOG_FILTER
from tests.framework import recorder
from tests.framework.recorder import Recorded


def functions(calls: list[str]) -> list[str]:
    names = [call.split(" ")[0].split("[")[0] for call in calls]
    return [name for name in names if name.startswith("krun_")]


def test_2x_gets_explicit_devices_and_a_file_in_memory(record: Recorded) -> None:
    ended, calls = record(200, "--cpus", "2", "--memory", "256", "--guest-port", "8080")
    assert ended.status == 5, ended.stderr
    file = next(call for call in calls if call.startswith("krun_fs_add_overlay_file"))
    calls.remove(file)
    root = next(call for call in calls if call.startswith("krun_add_virtiofs3"))
    calls.remove(root)
    assert root == "krun_add_virtiofs3 7 /dev/root /guest 0 0"
    assert calls == [
        "krun_init_log 3 1 2 0",
        "krun_create_ctx",
        "krun_set_vm_config 7 2 256",
        "krun_set_rlimits[0] 7=1048576:1048576",
        "krun_set_rlimits 7",
        "krun_add_virtio_console_default 7 0 1 6",
        "krun_add_vsock 7 1",
        "krun_set_port_map[0] 8080:8080",
        "krun_set_port_map 7",
        "krun_set_egress_policy[0] 127.0.0.1/32",
        "krun_set_egress_policy 7 0 0",
        f"environ[0] RUST_LOG={LOG_FILTER.decode()}",
        "krun_start_enter 7",
    ]
    head, text = file.split(" {", 1)
    assert head == "krun_fs_add_overlay_file 7 /dev/root /.krun_config.json 100600 1"
    process = json.loads("{" + text)["process"]
    assert process["args"] == ["/bin/app"]
    assert process["cwd"] == "/"


START = ["krun_create_ctx", "krun_set_vm_config", "krun_set_rlimits", "krun_set_rlimits"]
CONSOLE = ["krun_disable_implicit_console", "krun_add_virtio_console_default"]
VSOCK = ["krun_disable_implicit_vsock", "krun_add_vsock"]
END = ["krun_set_port_map", "krun_set_port_map", "krun_start_enter"]


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (113, ["krun_init_log", *START, "krun_set_root", *END]),
        (116, ["krun_init_log", *START, "krun_set_root", *CONSOLE, *END]),
        (117, ["krun_init_log", *START, "krun_set_root", *CONSOLE, *VSOCK, *END]),
        (118, ["krun_init_log", *START, "krun_add_virtiofs3", *CONSOLE, *VSOCK, *END]),
        (
            119,
            [
                "krun_init_log",
                *START,
                "krun_add_virtiofs3",
                "krun_fs_add_overlay_file",
                *CONSOLE,
                *VSOCK,
                *END,
            ],
        ),
    ],
)
def test_1x_gets_what_it_has_functions_for_and_implicit_devices_are_off(
    record: Recorded, generation: int, expected: list[str]
) -> None:
    ended, calls = record(generation)
    assert (ended.status, ended.stderr) == (5, b"")
    assert functions(calls) == expected


def test_upstreams_newest_has_the_functions_of_1_19_and_an_init_that_reads_strict_json(
    record: Recorded,
) -> None:
    calls = {generation: record(generation)[1] for generation in (119, 120)}
    assert functions(calls[119]) == functions(calls[120])
    files = {
        generation: next(call for call in of if call.startswith("krun_fs_add_overlay_file"))
        for generation, of in calls.items()
    }
    assert files[119].startswith(files[120])  # which lacks the NUL at the end


def test_a_libkrun_older_than_1_13_is_69(record: Recorded, tmp_path: Path) -> None:
    libkrun, _ = recorder.build(tmp_path, recorder.TOO_OLD)
    ended, calls = record(recorder.NEWEST, f"--libkrun={libkrun}")
    assert (ended.status, calls) == (69, [])
    assert "use libkrun 1.13 or later, or the bundled one" in ended.error


def test_each_limit_that_was_asked_for_is_set_by_its_number(record: Recorded) -> None:
    given = ["--rlimit=core=0:unlimited", "--rlimit=nofile=1:2", "--rlimit=nofile=64:100"]
    calls = [call for call in record(200, *given)[1] if call.startswith("krun_set_rlimits[")]
    assert calls == [
        "krun_set_rlimits[0] 7=64:100",
        f"krun_set_rlimits[1] 4=0:{2**64 - 1}",
    ]


def test_a_value_that_an_old_init_cant_carry_is_64_and_not_shown(record: Recorded) -> None:
    ended, _ = record(118, env={"HOST": 'hidden "quoted"'})
    assert ended.status == 64
    assert "hidden" not in ended.error
    assert record(119, env={"HOST": '"quoted"'})[0].status == 5


def test_no_function_is_ever_given_a_value_of_the_environment(record: Recorded) -> None:
    _, calls = record(200, env={"INTERNAL_SECRET": "hidden", "HOST": "hidden"})
    for call in calls:
        assert "hidden" not in call or call.startswith("krun_fs_add_overlay_file")


@pytest.mark.parametrize(
    "function",
    [
        "krun_init_log",
        "krun_create_ctx",
        "krun_set_vm_config",
        "krun_set_rlimits",
        "krun_add_virtiofs3",
        "krun_fs_add_overlay_file",
        "krun_add_virtio_console_default",
        "krun_add_vsock",
        "krun_set_port_map",
        "krun_set_egress_policy",
        "krun_start_enter",
    ],
)
def test_each_call_that_fails_is_70_and_named(record: Recorded, function: str) -> None:
    ended, _ = record(recorder.NEWEST, fail=function)
    assert ended.status == 70
    assert f"{function}: Invalid argument" in ended.error
