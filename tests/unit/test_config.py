"""Options become a Config whose every value is checked."""

from __future__ import annotations

import _socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient.config import Config
from krunclient.errors import BusyError, UsageError
from krunclient.options import LOG_LEVEL, MAX_ARG_BYTES
from krunclient.secret import Secret
from tests.framework.stages import options
from tests.framework.stages import settings as resolve


def variables(found: Config) -> dict[str, str]:
    return {name: secret.reveal() for name, secret in found.guest.variables}


def test_the_defaults_are_the_contracts() -> None:
    found = resolve()
    assert (found.files.root_path, found.policy.listen.port, found.policy.guest_port) == (
        "/srv/app",
        30000,
        80,
    )
    assert (found.guest.vcpus, found.guest.memory_mib, found.guest.exec_paths) == (
        1,
        512,
        ("/bin/app", "/app/bin/app"),
    )
    assert (found.guest.app_arguments, found.console) == ((), False)
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
    assert resolve(port=port).policy.listen.port == int(port)


@given(st.text(max_size=30).filter(lambda text: "\0" not in text and _is_utf8(text)))
def test_any_other_port_is_a_usage_error(text: str) -> None:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return
    with pytest.raises(UsageError):
        resolve("--", port=text)


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
        ["--env=A=" + "x" * MAX_ARG_BYTES],
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
        ["--env=A=" + "x" * (MAX_ARG_BYTES - 3)],
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
    assert options("--log-level=debug").value(LOG_LEVEL) == "debug"
    with pytest.raises(UsageError):
        options("--log-level=loud").value(LOG_LEVEL)


def test_a_secret_is_of_the_type_that_does_not_print() -> None:
    assert all(isinstance(value, Secret) for _, value in resolve().guest.variables)


def allowed(*words: str) -> list[str]:
    return [network.text() for network in resolve(*words).policy.allow]


def test_allow_replaces_its_default_and_none_allows_nothing() -> None:
    assert allowed() == ["127.0.0.1:8443"]
    assert allowed("--allow=[::1]:5") == ["[0:0:0:0:0:0:0:1]:5"]
    two = ["10.0.0.1:5", "10.0.0.2:6"]
    assert allowed(*(f"--allow={one}" for one in two)) == two
    assert allowed("--allow=none") == []


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8:443", "0.0.0.0/0:*", "10.0.0.1:*", "[fd00:0:0:0:0:0:0:0/8]:5"]
)
def test_a_network_and_every_port_can_be_allowed(text: str) -> None:
    assert allowed(f"--allow={text}") == [text]


def answers(*addresses: str) -> Callable[..., list[tuple[object, ...]]]:
    """What getaddrinfo(3) finds, in place of this host's resolver."""
    return lambda *_question: [(0, 0, 0, "", (address, 0)) for address in addresses]


def test_a_name_is_allowed_with_all_its_addresses_and_is_in_the_guests_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = answers("192.0.2.1", "2001:db8::1", "192.0.2.1", "fe80::1%eth0")
    monkeypatch.setattr(_socket, "getaddrinfo", found)
    config = resolve("--allow=db.example:5432", "--allow=127.0.0.1:1")
    assert [network.text() for network in config.policy.allow] == [
        *("192.0.2.1:5432", "[2001:db8:0:0:0:0:0:1]:5432", "127.0.0.1:1"),
    ]
    assert config.files.hosts == (
        *(("192.0.2.1", "db.example"), ("2001:db8:0:0:0:0:0:1", "db.example")),
    )
    assert resolve("--allow=127.0.0.1:1").files.hosts == ()


def test_a_name_that_cant_be_resolved_is_a_usage_error_with_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_question: object) -> None:
        raise _socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(_socket, "getaddrinfo", fails)
    with pytest.raises(UsageError, match=r"nowhere\.example: this host can't resolve it: name or"):
        resolve("--allow=nowhere.example:80")


def test_a_resolver_that_does_not_answer_now_is_worth_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_question: object) -> None:
        raise _socket.gaierror(_socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(_socket, "getaddrinfo", fails)
    with pytest.raises(BusyError, match=r"db\.example: .* temporary failure .*; try again"):
        resolve("--allow=db.example:80")


@pytest.mark.parametrize("name", ["api..example", ".example", f"{64 * 'a'}.example"])
def test_a_name_that_no_host_can_have_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="it is no name of a host"):
        resolve(f"--allow={name}:443")


@pytest.mark.parametrize(
    "word",
    [
        "--allow=:80",
        "--allow=*:80",
        "--allow=127.1:80",
        "--allow=0x7f000001:80",
        "--allow=a b:80",
        "--allow=b\u00fccher.example:80",
        "--allow=10.0.0.1/8:80",
        "--allow=10.0.0.0/33:80",
        "--allow=10.0.0.0/:80",
        "--allow=localhost/8:80",
        "--allow=127.0.0.1",
        "--allow=127.0.0.1:0",
        "--allow=::1:80",
        "--allow=[::1]",
        "--allow=",
        "--bind=localhost",
        "--bind=127.0.0.1:80",
        "--bind=[::1]",
        "--volume=/a",
        "--volume=/a:b",
        "--volume=:/b",
        "--volume=/a:/",
        "--volume=/a:/.",
        "--volume=/a:/b/../c",
        "--overlay-size=0",
        "--sandbox=weak",
    ],
)
def test_what_is_no_endpoint_address_or_volume_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError):
        resolve(word)


def test_volumes_are_read_from_the_right() -> None:
    found = resolve("--volume=/a:b:/c", "--volume=/d:/e:ro").files.volumes
    assert [(one.host_directory, one.guest_directory, one.read_only) for one in found] == [
        ("/a:b", "/c", False),
        ("/d", "/e", True),
    ]


def test_each_root_has_a_state_directory_of_its_own() -> None:
    names = set()
    for root in ("/srv/app", "/srv-app", "/srv/app%2D", "/" + "x" * 300, "/" + "x" * 301):
        overlay = resolve("--state-dir=/state", root=root).files.overlay
        assert overlay is not None
        assert overlay.count("/") == 2
        assert len(overlay) < 230
        names.add(overlay)
    assert len(names) == 5


@pytest.mark.parametrize(
    "words",
    [
        ["--overlay=/srv/app/upper"],
        ["--overlay=/srv"],
        ["--overlay=/a", "--state-dir=/b"],
        ["--sandbox=off", "--overlay=/a"],
        ["--sandbox=off", "--volume=/a:/b"],
    ],
)
def test_options_that_exclude_each_other_are_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        resolve(*words)


@pytest.mark.parametrize(
    ("root", "overlay"),
    [
        ("/", "/overlay"),
        ("/", "/"),
        ("//", "/overlay"),
        ("/srv", "/"),
        ("/srv/app", "/srv/app"),
        ("/srv/app/", "/srv/app/upper/"),
        ("/srv/app/../app", "/srv/app/x"),
    ],
)
def test_an_overlay_that_overlaps_the_root_is_a_usage_error(root: str, overlay: str) -> None:
    with pytest.raises(UsageError, match="it is inside ROOT_PATH, or ROOT_PATH is inside it"):
        resolve(f"--overlay={overlay}", root=root)


@pytest.mark.parametrize(
    ("root", "overlay"), [("/srv/app", "/srv/app2"), ("/srv/app2", "/srv/app"), ("/srv", "/o")]
)
def test_an_overlay_beside_the_root_is_taken(root: str, overlay: str) -> None:
    assert resolve(f"--overlay={overlay}", root=root).files.overlay == overlay
