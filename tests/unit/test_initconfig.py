"""The configuration file says the same to every generation of libkrun's init."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient import initconfig
from krunclient.address import Endpoint
from krunclient.errors import UsageError
from krunclient.initconfig import C_INIT, C_INIT_WITHOUT_ESCAPES, RUST_INIT
from krunclient.libraries import LibraryPair
from krunclient.plan import Plan
from krunclient.sandbox.mounts import Files
from krunclient.sandbox.policy import Policy
from krunclient.secret import Secret

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def plan(arguments: tuple[str, ...] = (), **variables: str) -> Plan:
    return Plan(
        machine="x86_64",
        files=Files(root_path="/srv/app", overlay=None, overlay_size_mib=64, volumes=()),
        libraries=LibraryPair(libkrun="/a", libkrunfw="/b", origin="given"),
        vcpus=1,
        memory_mib=512,
        exec_path="/bin/app",
        app_arguments=arguments,
        variables=tuple((name, Secret(value)) for name, value in variables.items()),
        host_port=80,
        guest_port=80,
        policy=Policy(
            guest_port=80, listen=Endpoint(packed=bytes((127, 0, 0, 1)), port=30000), allow=()
        ),
        egress_cidrs=(),
        user=None,
        sandbox=True,
        console=False,
        grace_period=8,
        ready_timeout=None,
        die_with_parent=False,
        notify_socket="",
    )


def unescape_as_init_c(text: str) -> str:
    """What init.c of libkrun 1.19 makes of a string: it knows the short escapes."""
    plain = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}
    result, rest = "", iter(text)
    for character in rest:
        result += plain[next(rest)] if character == "\\" else character
    return result


@given(TEXT, TEXT)
def test_strict_json_reads_back_what_was_written(value: str, argument: str) -> None:
    document = json.loads(initconfig.encode(plan((argument,), A=value), RUST_INIT))
    assert document == {
        "process": {"args": ["/bin/app", argument], "env": [f"A={value}"], "cwd": "/"}
    }


@given(TEXT)
def test_the_c_init_with_escapes_reads_back_what_was_written(value: str) -> None:
    text = initconfig.encode(plan(A=value), C_INIT)
    assert text.endswith(b'],"cwd":"/"}}\0')
    written = text.decode().partition('"env":["A=')[2].rpartition('"],"cwd"')[0]
    assert unescape_as_init_c(written) == value


@given(TEXT.filter(lambda text: '"' not in text and "\\" not in text))
def test_the_c_init_without_escapes_gets_the_plain_text(value: str) -> None:
    text = initconfig.encode(plan(A=value), C_INIT_WITHOUT_ESCAPES).decode()
    assert text.partition('"env":["A=')[2].rpartition('"],"cwd"')[0] == value


@pytest.mark.parametrize("character", ['"', "\\"])
def test_what_an_init_cant_carry_is_refused_unseen(character: str) -> None:
    with pytest.raises(UsageError) as caught:
        initconfig.encode(plan(A=f"hidden{character}"), C_INIT_WITHOUT_ESCAPES)
    assert "hidden" not in str(caught.value)
    with pytest.raises(UsageError):
        initconfig.encode(plan((character,)), C_INIT_WITHOUT_ESCAPES)
    initconfig.encode(plan((character,), A=character), C_INIT)


def test_more_arguments_than_the_oldest_init_has_room_for_are_refused() -> None:
    initconfig.encode(plan(("x",) * 30), C_INIT_WITHOUT_ESCAPES)
    with pytest.raises(UsageError):
        initconfig.encode(plan(("x",) * 31), C_INIT_WITHOUT_ESCAPES)
    initconfig.encode(plan(("x",) * 31), C_INIT)
