"""Options become a Config whose every value is checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient import cli, config
from krunclient.bindings import libc
from krunclient.errors import UsageError
from krunclient.secret import Secret

LIBC = libc.load()


def resolve(*argv: str | bytes, env: dict[bytes, bytes] | None = None) -> config.Config:
    words = [word if isinstance(word, bytes) else word.encode() for word in argv]
    return config.resolve(LIBC, cli.parse([b"/srv/app", b"30000", *words], env or {}))


def variables(found: config.Config) -> dict[str, str]:
    return {name: secret.reveal() for name, secret in found.variables}


def test_the_defaults_are_the_contracts() -> None:
    found = resolve()
    assert (found.root_path, found.listen.port, found.guest_port) == ("/srv/app", 30000, 80)
    assert (found.cpus, found.memory_mib, found.exec_path) == (1, 512, "/bin/app")
    assert (found.app_arguments, found.console) == ((), False)
    assert variables(found) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "TERM": "linux",
        "HOST": "",
        "INTERNAL_SECRET": "",
    }


@given(st.text().filter(lambda text: "\0" not in text and _is_utf8(text)))
def test_host_and_secret_are_taken_as_they_are(text: str) -> None:
    found = resolve(env={b"HOST": text.encode(), b"INTERNAL_SECRET": text.encode()})
    assert variables(found)["HOST"] == variables(found)["INTERNAL_SECRET"] == text
    assert "HOST" in repr(found)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def test_no_secret_is_in_the_configs_repr() -> None:
    found = resolve("--env=A=hidden", env={b"HOST": b"hidden", b"INTERNAL_SECRET": b"hidden"})
    assert "hidden" not in repr(found)


def test_env_gives_a_value_or_takes_krunclients_own() -> None:
    found = resolve("--env=A=x=y ", "--env=B", "--env=HOST=h", env={b"B": b"b", b"C": b"c"})
    assert variables(found)["A"] == "x=y "
    assert variables(found)["B"] == "b"
    assert variables(found)["HOST"] == "h"
    assert "C" not in variables(found)


@pytest.mark.parametrize("port", ["1", "65535", "080"])
def test_ports_from_1_to_65535_are_taken(port: str) -> None:
    options = cli.parse([b"/srv/app", port.encode()], {})
    assert config.resolve(LIBC, options).listen.port == int(port)


@given(st.text(max_size=30).filter(lambda text: "\0" not in text and _is_utf8(text)))
def test_any_other_port_is_a_usage_error(text: str) -> None:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return
    with pytest.raises(UsageError):
        config.resolve(LIBC, cli.parse([b"/srv/app", text.encode(), b"--"], {}))


@pytest.mark.parametrize(
    "words",
    [
        ["--cpus=0"],
        ["--cpus=256"],
        ["--memory=0"],
        ["--memory=63"],
        ["--memory=4294967296"],
        ["--memory=1e3"],
        ["--memory=" + "9" * 5000],
        ["--guest-port=0"],
        ["--guest-port=65536"],
        ["--exec=bin/app"],
        ["--exec=/bin/"],
        ["--libkrun=libkrun.so"],
        ["--env="],
        ["--env==x"],
        ["--env=A B=x"],
        ["--env=1A=x"],
        ["--env=a.b=x"],
        ["--env=UNSET_VARIABLE"],
        ["--env=KRUN_INIT=/bin/sh"],
        [b"--env=A=\xff"],
        [b"--", b"\xff"],
        ["--env=A=" + "x" * config.MAX_ARG_BYTES],
        ["a third argument"],
    ],
)
def test_a_value_out_of_range_is_a_usage_error(words: list[str | bytes]) -> None:
    with pytest.raises(UsageError):
        resolve(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["--cpus=255"],
        ["--memory=64"],
        ["--memory=4294967295"],
        ["--guest-port=65535"],
        ["--exec=/a b"],
        ["--libkrun=/lib/x.so"],
        ["--env=A="],
        ["--env=_a1=x"],
        ["--env=A=\u00e9"],
        ["--env=A=" + "x" * (config.MAX_ARG_BYTES - 3)],
        ["--", "a third argument", "\u00e9"],
    ],
)
def test_its_neighbour_in_range_is_taken(words: list[str | bytes]) -> None:
    resolve(*words)


def test_a_value_that_is_no_utf8_is_a_usage_error_that_does_not_show_it() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(env={b"INTERNAL_SECRET": b"hidden\xff"})
    assert caught.value.thing == "variable INTERNAL_SECRET"
    assert "hidden" not in str(caught.value)


def test_log_levels_are_checked() -> None:
    assert config.log_level(cli.parse([b"--log-level=debug"], {})) == "debug"
    with pytest.raises(UsageError):
        config.log_level(cli.parse([b"--log-level=loud"], {}))


def test_a_secret_is_of_the_type_that_does_not_print() -> None:
    assert all(isinstance(value, Secret) for _, value in resolve().variables)
