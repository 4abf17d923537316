"""The network of `--network passt`, as data: what the guest's card, its host and passt are told.

The guest has a card of its own behind passt, and so an IPv4 address, while 127.0.0.1 is its own.
What it may reach keeps its address where a guest can have a route there. What it can't, the host's
loopback and IPv6, has a stand-in, an address of TEST-NET-1 (RFC 5737), and names for it.
"""

from __future__ import annotations

from krunclient.bindings.libc import AF_INET
from krunclient.errors import UsageError
from krunclient.model import Endpoint, ip_text
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from krunclient.config import Config
    from krunclient.host.passt import Programs
    from krunclient.model import Network, Policy, User

TEST_NET = bytes((192, 0, 2))
GATEWAY, GUEST, NEWS = (TEST_NET + bytes((last,)) for last in (1, 15, 254))
STAND_INS = range(16, 254)
# Local ones: nobody else is on the wire.
GUEST_MAC, PASST_MAC = (bytes((0x02, 0)) + packed for packed in (GUEST, GATEWAY))
LOOPBACK_V4, LOOPBACK_V6 = bytes((127, 0, 0, 1)), bytes(15) + b"\1"
# By the news of the guest's program: the port of the connection that brings them.
LISTENS, NO_LONGER = 1, 2
HOST_NAMES = ("internal.yesterday.localhost", "host.internal")
OWN_NAME = "localhost"  # which is the guest's in its own network
PROGRAM = "/.krunclient-network"  # in the guest

# Who connects to the guest has an address of the range for benchmarks (RFC 2544), where it is told
# apart from all others: by its own, a guest that has no route there could not answer.
CLIENTS, CLIENTS_PREFIX = bytes((198, 18, 0, 0)), 15


class UserNetwork(Record):
    """`user` is who passt runs as, None for the user that started krunclient. `passt` and
    `guest_program` are paths of the host. `stand_ins` are the guest's addresses by those of the
    host that they stand for, `routes` where it may go by itself, `names` what its /etc/hosts has,
    each an address and a name.
    """

    user: User | None
    passt: str
    guest_program: str
    stand_ins: Mapping[bytes, bytes]
    routes: tuple[str, ...]
    names: tuple[tuple[str, str], ...]

    def on_host(self, wanted: Endpoint) -> Endpoint:
        """Where on the host that is which the guest wants to reach."""
        for packed, stand_in in self.stand_ins.items():
            if stand_in == wanted.packed:
                return Endpoint(packed=packed, port=wanted.port)
        return wanted

    @property
    def program(self) -> str:
        """Where the guest's program is in the guest."""
        return PROGRAM

    @property
    def guest_mac(self) -> bytes:
        return GUEST_MAC

    def started_by(self, guest_port: int) -> tuple[str, str]:
        """The program in the guest that starts the app, and its settings."""
        addresses = (ip_text(packed) for packed in (GUEST, GATEWAY, NEWS))
        return PROGRAM, " ".join((str(guest_port), *addresses, *self.routes))

    def passt_arguments(self, policy: Policy, tap: int) -> tuple[str, ...]:
        """passt(1). It shares no UDP and no ICMP, and offers no addresses and no names: what it
        needs of the host's interfaces it finds at the loopback device.
        """
        return (
            *("passt", "--foreground", "--quiet", "--fd", str(tap)),
            *("--tcp-ports", f"{ip_text(LOOPBACK_V4)}/{policy.listen.port}:{policy.guest_port}"),
            *("--udp-ports", "none", "--no-udp", "--no-icmp", "--no-dhcp", "--no-dhcpv6"),
            *("--no-ra", "--no-map-gw", "--ipv4-only", "--interface", "lo"),
            *("--address", ip_text(GUEST), "--netmask", "24", "--gateway", ip_text(GATEWAY)),
            *("--mac-addr", ":".join(f"{byte:02x}" for byte in PASST_MAC)),
        )


def make(config: Config, programs: Programs) -> UserNetwork:
    """Raises UsageError for what a guest in this network can't have."""
    allow = config.policy.allow
    stand_ins = _stand_ins(network for network in allow if _needs_stand_in(network))
    return UserNetwork(
        user=programs.user,
        passt=programs.passt,
        guest_program=programs.guest_program,
        stand_ins=stand_ins,
        routes=tuple(dict.fromkeys(_routes(allow, stand_ins))),
        names=tuple(dict.fromkeys(_names(config.files.hosts, stand_ins))),
    )


def client_sockaddr(number: int) -> bytes:
    """The address that the connection of this number comes from, for the guest: none comes twice
    within some thousand millions. struct sockaddr_in, ip(7).
    """
    host, port = divmod(number, 2**16 - 1024)
    first = int.from_bytes(CLIENTS, "big") + 1
    packed = (first + host % (2 ** (32 - CLIENTS_PREFIX) - 2)).to_bytes(4, "big")
    return Endpoint(packed=packed, port=1024 + port).sockaddr(AF_INET)


def listen_sockaddr(policy: Policy) -> bytes:
    """Where passt listens as it thinks, and so where each of its clients came in. passt serves
    IPv4 alone, while the mapped port can be on an IPv6 address.
    """
    return Endpoint(packed=LOOPBACK_V4, port=policy.listen.port).sockaddr(AF_INET)


def _needs_stand_in(network: Network) -> bool:
    if network.packed.startswith(TEST_NET) and network.prefix >= 24:
        why = "in this network a guest has addresses there that mean something else"
        raise UsageError("--allow can't be used", network.text(), why, "use --network tsi")
    is_loopback = network.packed[:1] == LOOPBACK_V4[:1] and network.prefix >= 8
    is_ipv6 = len(network.packed) == len(LOOPBACK_V6)
    if (is_loopback or is_ipv6) and not network.is_one_address:
        why = "in this network a guest reaches single addresses of the host's loopback and of IPv6"
        raise UsageError("--allow can't be used", network.text(), why, "give each address")
    return is_loopback or is_ipv6


def _stand_ins(networks: Iterable[Network]) -> Mapping[bytes, bytes]:
    packed = tuple(dict.fromkeys(network.packed for network in networks))
    if len(packed) > len(STAND_INS):
        why = f"a guest can have {len(STAND_INS)} addresses of the host's loopback and of IPv6"
        raise UsageError("--allow can't be used", f"{len(packed)} addresses", why, "give fewer")
    return {one: TEST_NET + bytes((last,)) for one, last in zip(packed, STAND_INS, strict=False)}


def _routes(allow: Iterable[Network], stand_ins: Mapping[bytes, bytes]) -> Iterator[str]:
    yield f"{ip_text(CLIENTS)}/{CLIENTS_PREFIX}"
    for network in allow:
        if network.packed not in stand_ins:
            yield network.cidr()
    for stand_in in stand_ins.values():
        yield f"{ip_text(stand_in)}/32"


def _names(
    hosts: Iterable[tuple[str, str]], stand_ins: Mapping[bytes, bytes]
) -> Iterator[tuple[str, str]]:
    as_text = {ip_text(packed): ip_text(stand_in) for packed, stand_in in stand_ins.items()}
    for address, name in hosts:
        if name != OWN_NAME:
            yield as_text.get(address, address), name
    for packed, stand_in in stand_ins.items():
        if packed == LOOPBACK_V4:
            for name in HOST_NAMES:
                yield ip_text(stand_in), name
        readable = ip_text(packed).replace(".", "-").replace(":", "-")
        yield ip_text(stand_in), f"{readable}.{HOST_NAMES[-1]}"
