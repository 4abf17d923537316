"""Addresses, and what the policy says of them."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient import address, cli, config
from krunclient.address import Endpoint
from krunclient.bindings import libc
from krunclient.errors import UsageError
from krunclient.sandbox.policy import Policy

LIBC = libc.load()
PORTS = st.integers(1, 65535)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def endpoint(text: str, port: int) -> Endpoint:
    packed = address.parse_ip(LIBC, text)
    assert packed is not None
    return Endpoint(packed=packed, port=port)


@given(ADDRESSES, PORTS)
def test_an_address_is_read_and_written_as_the_standard_library_does(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    found = endpoint(str(ip), port)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    assert found.packed == (mapped or ip).packed
    text, _, shown_port = found.text().rpartition(":")
    assert ipaddress.ip_address(text.strip("[]")) == (mapped or ip)
    assert int(shown_port) == port
    for family in (socket.AF_INET, socket.AF_INET6):
        if family == socket.AF_INET6 or found.family == socket.AF_INET:
            assert address.from_sockaddr(found.sockaddr(family)) == found


@given(st.text(max_size=20))
def test_a_text_is_an_address_exactly_when_it_is_one(text: str) -> None:
    try:
        expected = ipaddress.ip_address(text)
    except ValueError:
        assert address.parse_ip(LIBC, text) is None
    else:
        if "%" not in text:
            mapped = getattr(expected, "ipv4_mapped", None)
            assert address.parse_ip(LIBC, text) == (mapped or expected).packed


@given(st.binary(max_size=130))
def test_any_bytes_of_a_hostile_vmm_are_an_address_or_none(data: bytes) -> None:
    found = address.from_sockaddr(data)
    assert found is None or (len(found.packed) in (4, 16) and 0 <= found.port <= 65535)


ALLOWED = endpoint("127.0.0.1", 8443)
POLICY = Policy(guest_port=80, listen=endpoint("127.0.0.1", 30000), allow=(ALLOWED,))


@given(ADDRESSES, PORTS)
def test_only_the_allowed_endpoint_may_be_connected_to(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    wanted = endpoint(str(ip), port)
    assert POLICY.may_connect(wanted) == (wanted == ALLOWED)
    assert POLICY.may_connect(ALLOWED)
    assert POLICY.may_connect(endpoint("::ffff:127.0.0.1", 8443))
    assert not POLICY.may_connect(None)


@given(PORTS)
def test_only_the_guests_port_may_be_listened_on(port: int) -> None:
    assert POLICY.may_listen(endpoint("0.0.0.0", port)) == (port == 80)
    assert not POLICY.may_listen(None)


def options(*words: str) -> config.Config:
    argv = [word.encode() for word in ("/srv/app", "30000", *words)]
    return config.resolve(LIBC, cli.parse(argv, {}))


def test_allow_replaces_its_default_and_none_allows_nothing() -> None:
    assert options().allow == (ALLOWED,)
    assert options("--allow=[::1]:5").allow == (endpoint("::1", 5),)
    assert options("--allow=10.0.0.1:5", "--allow=10.0.0.2:6").allow == (
        endpoint("10.0.0.1", 5),
        endpoint("10.0.0.2", 6),
    )
    assert options("--allow=none").allow == ()


@pytest.mark.parametrize(
    "word",
    [
        "--allow=localhost:80",
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
        "--volume=/a:/b/../c",
        "--overlay-size=0",
        "--sandbox=weak",
    ],
)
def test_what_is_no_endpoint_address_or_volume_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError):
        options(word)


def test_volumes_are_read_from_the_right() -> None:
    found = options("--volume=/a:b:/c", "--volume=/d:/e:ro").files.volumes
    assert [(one.host_directory, one.guest_directory, one.read_only) for one in found] == [
        ("/a:b", "/c", False),
        ("/d", "/e", True),
    ]


def test_each_root_has_a_state_directory_of_its_own() -> None:
    names = set()
    for root in ("/srv/app", "/srv-app", "/srv/app%2D", "/" + "x" * 300, "/" + "x" * 301):
        argv = [root.encode(), b"30000", b"--state-dir=/state"]
        overlay = config.resolve(LIBC, cli.parse(argv, {})).files.overlay
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
        options(*words)
