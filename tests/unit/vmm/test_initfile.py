"""The configuration file says the same to every generation of libkrun's init."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient.errors import UsageError
from krunclient.model import Guest
from krunclient.secret import Secret
from krunclient.vmm import initfile
from krunclient.vmm.initfile import C_INIT, C_INIT_WITHOUT_ESCAPES, RUST_INIT, Dialect
from tests.framework.stages import settings

TEXT = st.text().map(lambda text: text.replace("\0", ""))


def guest(arguments: tuple[str, ...] = (), **variables: str) -> Guest:
    return settings().guest.replace(
        app_arguments=arguments,
        variables=tuple((name, Secret(value)) for name, value in variables.items()),
    )


def encode(of: Guest, dialect: Dialect) -> str:
    return initfile.encode("/bin/app", of, dialect).reveal()


def unescape_as_init_c(text: str) -> str:
    """What init.c of libkrun 1.19 makes of a string: it knows the short escapes."""
    plain = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}
    result, rest = "", iter(text)
    for character in rest:
        result += plain[next(rest)] if character == "\\" else character
    return result


@given(TEXT, TEXT)
def test_strict_json_reads_back_what_was_written(value: str, argument: str) -> None:
    document = json.loads(encode(guest((argument,), A=value), RUST_INIT))
    assert document == {
        "process": {"args": ["/bin/app", argument], "env": [f"A={value}"], "cwd": "/"}
    }


@given(TEXT)
def test_the_c_init_with_escapes_reads_back_what_was_written(value: str) -> None:
    text = encode(guest(A=value), C_INIT)
    assert text.endswith('],"cwd":"/"}}\0')
    written = text.partition('"env":["A=')[2].rpartition('"],"cwd"')[0]
    assert unescape_as_init_c(written) == value


@given(TEXT.filter(lambda text: '"' not in text and "\\" not in text))
def test_the_c_init_without_escapes_gets_the_plain_text(value: str) -> None:
    text = encode(guest(A=value), C_INIT_WITHOUT_ESCAPES)
    assert text.partition('"env":["A=')[2].rpartition('"],"cwd"')[0] == value


@pytest.mark.parametrize("character", ['"', "\\"])
def test_what_an_init_cant_carry_is_refused_unseen(character: str) -> None:
    with pytest.raises(UsageError) as caught:
        encode(guest(A=f"hidden{character}"), C_INIT_WITHOUT_ESCAPES)
    assert "hidden" not in str(caught.value)
    with pytest.raises(UsageError):
        encode(guest((character,)), C_INIT_WITHOUT_ESCAPES)
    encode(guest((character,), A=character), C_INIT)


def test_more_arguments_than_the_oldest_init_has_room_for_are_refused() -> None:
    encode(guest(("x",) * 30), C_INIT_WITHOUT_ESCAPES)
    with pytest.raises(UsageError):
        encode(guest(("x",) * 31), C_INIT_WITHOUT_ESCAPES)
    encode(guest(("x",) * 31), C_INIT)


def test_the_whole_file_is_a_secret() -> None:
    assert "hidden" not in repr(initfile.encode("/bin/app", guest(A="hidden"), C_INIT))
