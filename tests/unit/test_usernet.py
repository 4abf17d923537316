"""What a guest behind passt is told: addresses, routes and names, as data."""

from __future__ import annotations

import pytest

from krunclient import usernet
from krunclient.bindings.libc import AF_INET
from krunclient.errors import UsageError
from krunclient.host.passt import Programs
from krunclient.model import Endpoint, from_sockaddr, ip_text
from krunclient.usernet import GUEST, NEWS, UserNetwork
from tests.framework.stages import settings

SIX = bytes.fromhex("20010db8000000000000000000000007")


def network(*options: str) -> UserNetwork:
    programs = Programs(passt="/usr/bin/passt", guest_program="/program", user=None)
    return usernet.make(settings(*options), programs)


def names_of(found: UserNetwork) -> dict[str, list[str]]:
    return {
        address: [name for where, name in found.names if where == address]
        for address, _ in found.names
    }


def test_the_hosts_loopback_and_ipv6_have_stand_ins_with_names_and_the_rest_routes() -> None:
    found = network(
        "--allow=127.0.0.1:8443", "--allow=10.0.0.0/8:*", "--allow=[2001:db8::7]:443",
        "--allow=192.168.1.2:80",
    )  # fmt: skip
    assert found.routes == (
        *("198.18.0.0/15", "10.0.0.0/8", "192.168.1.2/32", "192.0.2.16/32", "192.0.2.17/32"),
    )
    assert names_of(found) == {
        "192.0.2.16": ["internal.yesterday.localhost", "host.internal", "127-0-0-1.host.internal"],
        "192.0.2.17": ["2001-db8-0-0-0-0-0-7.host.internal"],
    }


def test_a_stand_in_leads_to_what_it_stands_for_and_all_else_stays() -> None:
    found = network("--allow=[2001:db8::7]:443")
    stand_in = bytes((192, 0, 2, 16))
    assert found.on_host(Endpoint(packed=stand_in, port=5)) == Endpoint(packed=SIX, port=5)
    other = Endpoint(packed=bytes((192, 0, 2, 17)), port=5)
    assert found.on_host(other) == other


def test_what_nobody_allowed_has_no_route_and_no_name() -> None:
    found = network("--allow=none")
    assert (found.routes, found.names) == (("198.18.0.0/15",), ())


@pytest.mark.parametrize("wide", ["127.0.0.0/8:80", "127.0.0.0/30:*", "[2001:db8::]/32:1"])
def test_what_a_guest_cant_have_a_route_to_is_64(wide: str) -> None:
    text = wide.replace("]/32", "/32]")
    with pytest.raises(UsageError, match="single addresses"):
        network(f"--allow={text}")
    network("--allow=0.0.0.0/0:*", "--allow=127.0.0.1:80", "--allow=[::1]:80")


def test_more_stand_ins_than_there_are_addresses_is_64() -> None:
    addresses = [f"--allow=127.0.{one // 200}.{one % 200 + 1}:80" for one in range(239)]
    with pytest.raises(UsageError, match="give fewer"):
        network(*addresses)
    stand_ins = set(network(*addresses[:-1]).stand_ins.values())
    assert len(stand_ins) == 238
    assert not stand_ins & {GUEST, NEWS, usernet.GATEWAY}


def test_a_name_of_the_hosts_loopback_is_the_stand_ins_but_localhost_is_the_guests_own() -> None:
    assert "localhost" not in [name for _, name in network("--allow=localhost:80").names]


def test_no_client_has_the_address_of_another() -> None:
    numbers = (0, 1, 64511, 64512, 64513, 10**9, 2**32)
    found = [from_sockaddr(usernet.client_sockaddr(number)) for number in numbers]
    assert len({(one.packed, one.port) for one in found if one}) == len(numbers)
    assert all(one and one.port >= 1024 and one.packed[:1] == bytes((198,)) for one in found)
    assert ip_text(found[0].packed) == "198.18.0.1" if found[0] else False
    assert len(usernet.client_sockaddr(0)) == 16
    assert {one and one.family for one in found} == {AF_INET}


def test_what_passt_is_told_has_no_value_of_the_guests() -> None:
    found = network("--bind=::1")
    arguments = found.passt_arguments(settings("--bind=::1").policy, 7)
    assert arguments[:5] == ("passt", "--foreground", "--quiet", "--fd", "7")
    assert "127.0.0.1/30000:80" in arguments
    program, told = found.started_by(80)
    assert program == found.program == "/.krunclient-network"
    assert told == "80 192.0.2.15 192.0.2.1 192.0.2.254 198.18.0.0/15 192.0.2.16/32"
