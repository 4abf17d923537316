"""Addresses, and what the policy says of them."""

from __future__ import annotations

import ipaddress
import socket

from hypothesis import given
from hypothesis import strategies as st

from krunclient import model
from krunclient.model import Endpoint, Network, Policy
from tests.framework.stages import LIBC

PORTS = st.integers(1, 65535)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def endpoint(text: str, port: int) -> Endpoint:
    packed = model.parse_ip(LIBC, text)
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
            assert model.from_sockaddr(found.sockaddr(family)) == found


@given(st.text(max_size=20))
def test_a_text_is_an_address_exactly_when_it_is_one(text: str) -> None:
    try:
        expected = ipaddress.ip_address(text)
    except ValueError:
        assert model.parse_ip(LIBC, text) is None
    else:
        if "%" not in text:
            mapped = getattr(expected, "ipv4_mapped", None)
            assert model.parse_ip(LIBC, text) == (mapped or expected).packed


@given(st.binary(max_size=130))
def test_any_bytes_of_a_hostile_vmm_are_an_address_or_none(data: bytes) -> None:
    found = model.from_sockaddr(data)
    assert found is None or (len(found.packed) in (4, 16) and 0 <= found.port <= 65535)


ALLOWED = endpoint("127.0.0.1", 8443)
POLICY = Policy(
    guest_port=80,
    listen=endpoint("127.0.0.1", 30000),
    allow=(Network(packed=ALLOWED.packed, prefix=32, port=ALLOWED.port),),
)


@given(ADDRESSES, PORTS)
def test_only_the_allowed_endpoint_may_be_connected_to(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    wanted = endpoint(str(ip), port)
    assert POLICY.may_connect(wanted) == (wanted == ALLOWED)
    assert POLICY.may_connect(ALLOWED)
    assert POLICY.may_connect(endpoint("::ffff:127.0.0.1", 8443))
    assert not POLICY.may_connect(None)


@given(ADDRESSES, st.integers(0, 128), ADDRESSES, PORTS)
def test_a_network_holds_the_addresses_that_the_standard_library_says(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
    prefix: int,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
) -> None:
    network = ipaddress.ip_network((ip, min(prefix, ip.max_prefixlen)), strict=False)
    packed = network.network_address.packed
    for wanted in (endpoint(str(ip), port), endpoint(str(other), port)):
        address = ipaddress.ip_address(wanted.packed)
        if packed.startswith(model.V4_MAPPED_PREFIX):
            return  # kept as IPv4
        inside = address.version == network.version and address in network
        every = Network(packed=packed, prefix=network.prefixlen, port=None)
        assert every.holds(wanted) == inside
        assert every.replace(port=port).holds(wanted) == inside
        assert not every.replace(port=port % 65535 + 1).holds(wanted)


@given(PORTS)
def test_only_the_guests_port_may_be_listened_on(port: int) -> None:
    assert POLICY.may_listen(endpoint("0.0.0.0", port)) == (port == 80)
    assert not POLICY.may_listen(None)
