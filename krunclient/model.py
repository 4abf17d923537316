"""The values that stages and processes hand to each other. Nothing here has an effect."""

from __future__ import annotations

import ctypes

from krunclient.bindings.libc import AF_INET, AF_INET6
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.secret import Secret

KVM = "/dev/kvm"
V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
SIZES = {AF_INET: 4, AF_INET6: 16}


class Endpoint(Record):
    """An IP address, in network byte order, and a TCP port.

    An IPv4 address that is mapped into IPv6 is kept as IPv4: the kernel treats them alike.
    """

    packed: bytes
    port: int

    @property
    def family(self) -> int:
        return AF_INET if len(self.packed) == SIZES[AF_INET] else AF_INET6

    def text(self) -> str:
        """As users write it: `127.0.0.1:80`, `[::1]:80`."""
        host = ip_text(self.packed)
        return f"[{host}]:{self.port}" if self.family == AF_INET6 else f"{host}:{self.port}"

    def sockaddr(self, family: int) -> bytes:
        """struct sockaddr_in or sockaddr_in6 for a socket of this family, ip(7), ipv6(7).

        Raises ValueError for an IPv6 address and an IPv4 socket.
        """
        head = family.to_bytes(2, "little") + self.port.to_bytes(2, "big")
        if family == AF_INET6:
            mapped = V4_MAPPED_PREFIX + self.packed if self.family == AF_INET else self.packed
            return head + bytes(4) + mapped + bytes(4)
        if self.family == AF_INET6:
            raise ValueError("an IPv4 socket can't have an IPv6 address")
        return head + self.packed + bytes(8)


class Network(Record):
    """The IP addresses that have the first `prefix` bits of `packed`, and a TCP port, None for all
    of them.
    """

    packed: bytes
    prefix: int
    port: int | None

    def holds(self, endpoint: Endpoint) -> bool:
        shift = 8 * len(self.packed) - self.prefix
        mine, other = (int.from_bytes(one, "big") for one in (self.packed, endpoint.packed))
        return (
            len(self.packed) == len(endpoint.packed)
            and mine >> shift == other >> shift
            and self.port in (None, endpoint.port)
        )

    @property
    def is_one_address(self) -> bool:
        return self.prefix == 8 * len(self.packed)

    def cidr(self) -> str:
        """Without the port: `10.0.0.0/8`."""
        return f"{ip_text(self.packed)}/{self.prefix}"

    def text(self) -> str:
        """As users write it: `127.0.0.1:80`, `10.0.0.0/8:443`, `[0:0:0:0:0:0:0:1]:*`."""
        address = ip_text(self.packed) if self.is_one_address else self.cidr()
        bracketed = f"[{address}]" if len(self.packed) == SIZES[AF_INET6] else address
        return f"{bracketed}:{'*' if self.port is None else self.port}"


def ip_text(packed: bytes) -> str:
    """`127.0.0.1`, `0:0:0:0:0:0:0:1`."""
    if len(packed) == SIZES[AF_INET]:
        return ".".join(str(byte) for byte in packed)
    groups = (packed[start : start + 2].hex() for start in range(0, 16, 2))
    return ":".join(f"{int(group, 16):x}" for group in groups)


def parse_ip(libc: Libc, text: str) -> bytes | None:
    """The packed form of an IPv4 or IPv6 literal, None for a text that is none."""
    try:
        encoded = text.encode("ascii")
    except UnicodeEncodeError:
        return None
    for family, size in SIZES.items():
        buffer = ctypes.create_string_buffer(size)
        if b"\0" not in encoded and libc.inet_pton(family, encoded, buffer) == 1:
            return _unmapped(buffer.raw)
    return None


def from_sockaddr(data: bytes) -> Endpoint | None:
    """The endpoint in the bytes of a struct sockaddr, None for other families and short ones."""
    family, port = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "big")
    if family == AF_INET and len(data) >= 8:
        return Endpoint(packed=data[4:8], port=port)
    if family == AF_INET6 and len(data) >= 24:
        return Endpoint(packed=_unmapped(data[8:24]), port=port)
    return None


def _unmapped(packed: bytes) -> bytes:
    return packed[12:] if packed.startswith(V4_MAPPED_PREFIX) and len(packed) == 16 else packed


class Policy(Record):
    """What the guest may do with sockets. All else is refused.

    The guest listens on `guest_port`; `listen` is where the host does so for it. `allow` is what
    the guest may connect to. `client_timeout` is how many seconds a client of the guest's may take
    nothing before its connection is ended, None without a limit.
    """

    guest_port: int
    listen: Endpoint
    allow: tuple[Network, ...]
    client_timeout: float | None = None

    def may_listen(self, wanted: Endpoint | None) -> bool:
        """`wanted` is the address of a bind(2) of the VMM's. libkrun was told to map the port to
        its own number, so that a bind to `guest_port` is the guest's listener and no other.
        """
        return wanted is not None and wanted.port == self.guest_port

    def may_connect(self, wanted: Endpoint | None) -> bool:
        return wanted is not None and any(network.holds(wanted) for network in self.allow)


class Limits(Record):
    """Of the VMM's processes on the host: percent of one processor, MiB of memory, processes and
    threads. None is no limit.
    """

    cpu_percent: int | None
    memory_mib: int | None
    pids: int | None


class HealthCheck(Record):
    """How the app is asked whether it is well: GET `path`, by HTTP. Times are in seconds; after
    `retries` bad answers in a row it is not. `ends_vm` tells whether that ends the VM.
    """

    path: str
    interval: float
    timeout: float
    retries: int
    ends_vm: bool


# libkrun holds a descriptor for each file that the guest knows; an app with a package manager's
# tree of libraries soon knows some ten thousands.
FEW_OPEN_FILES = 16384
MORE_OPEN_FILES = "raise the hard limit, by ulimit -Hn or LimitNOFILE= of systemd"


# The limits of a process that bound a VMM on the host, setrlimit(2).
BOUNDED = ("RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NPROC")


class Rlimit(Record):
    """A limit of the guest's program, setrlimit(2). `name` is the kernel's: `RLIMIT_NOFILE`."""

    name: str
    soft: int
    hard: int


class Guest(Record):
    """The virtual machine and its program.

    `exec_paths` are absolute in the guest: the first that the root has is run. `variables` is the
    program's whole environment, in order.
    """

    vcpus: int
    memory_mib: int
    exec_paths: tuple[str, ...]
    app_arguments: tuple[str, ...]
    variables: tuple[tuple[str, Secret], ...]
    rlimits: tuple[Rlimit, ...]


class Volume(Record):
    """A host directory inside the guest. `guest_directory` is absolute in the guest."""

    host_directory: str
    guest_directory: str
    read_only: bool


class Files(Record):
    """What the guest finds. `overlay` is None if its writes stay in memory. `hosts` are addresses
    and names that its /etc/hosts has beside those of the root.

    Paths may hold bytes that are no UTF-8, as surrogates.
    """

    root_path: str
    overlay: str | None
    overlay_size_mib: int
    volumes: tuple[Volume, ...]
    hosts: tuple[tuple[str, str], ...] = ()


class User(Record):
    """Numeric ids, and the supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


# Where libkrun's init looks for its arguments and the app's environment, in the guest.
INIT_FILE = "/.krun_config.json"


class Features(Record):
    """What a libkrun can do: whether it has the function of each name, include/libkrun.h.

    Functions that every libkrun since 1.13 has are not among them.
    """

    krun_set_root: bool  # 1.x
    krun_add_virtiofs3: bool  # 1.18
    krun_fs_add_overlay_file: bool  # 1.19
    krun_disable_implicit_console: bool
    krun_add_virtio_console_default: bool  # 1.16
    krun_disable_implicit_vsock: bool
    krun_add_vsock: bool  # 1.17
    krun_add_net_unixstream: bool  # 1.16
    krun_set_egress_policy: bool  # 2.x of smolmachines

    @classmethod
    def of(cls, has: Callable[[str], bool]) -> Features:
        return cls(**{name: has(name) for name in cls.field_names()})

    @property
    def generation(self) -> str:
        """1.x has implicit devices, 2.x explicit ones alone."""
        return "1.x" if self.krun_set_root else "2.x"


class LibraryPair(Record):
    """Absolute paths, where each was found (`bundled`, `system` or `given`), what this libkrun can
    do, and in which language the init inside it is written: `C` or `Rust`.
    """

    libkrun: str
    libkrunfw: str
    libkrun_origin: str
    libkrunfw_origin: str
    features: Features
    init: str
