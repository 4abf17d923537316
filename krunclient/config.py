"""Options to Config: every value checked, in its own type and unit."""

from __future__ import annotations

import os
import stat

from krunclient import model
from krunclient import options as rows
from krunclient.bindings.libc import SOCK_STREAM
from krunclient.errors import BusyError, PermissionDeniedError, UsageError
from krunclient.model import Endpoint, Files, Guest, HealthCheck, Limits, Network, Policy, Rlimit
from krunclient.record import Record
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.cli import Options
    from krunclient.model import User

    Host = tuple[str, str]  # an address and a name

# What the guest gets beside HOST, INTERNAL_SECRET and --env. TERM is the kernel's own default
# for the console that libkrun gives.
BASE_VARIABLES = (
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("TERM", "linux"),
)
SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"  # for who has no PATH
INHERITED_VARIABLES = ("HOST", "INTERNAL_SECRET")

MAX_FILE_NAME_BYTES = 200  # NAME_MAX is 255
SAMPLE_ROOT = "/usr"  # a directory that every host has
NO_ROOT = "/dev/null/root"  # none, so that no overlay can be inside it


class Life(Record):
    """How a VM's life begins and ends, in seconds. `ready_timeout` is None without one."""

    grace_period: float
    ready_timeout: float | None
    die_with_parent: bool


class Monitoring(Record):
    """What is told of a VM, and to whom: `notify_socket` is where sd_notify(3) sends to, empty if
    nobody waits, `metrics` the path of a file, None without one. `health` is None if nobody is to
    ask the app.
    """

    notify_socket: str
    metrics: str | None
    health: HealthCheck | None


class Paths(Record):
    """Of what is loaded or run, as the user asked for it: None for what was not named. They may
    hold bytes that are no UTF-8, as surrogates. In `search` programs are looked for, execvp(3).
    """

    libkrun: str | None
    libkrunfw: str | None
    passt: str | None
    search: str


class Config(Record):
    """What is to be run, as the user asked for it.

    `limits` is None without any, `user` if the VMM keeps the user that started krunclient.
    `network` is `tsi` or `passt`.
    """

    guest: Guest
    files: Files
    policy: Policy
    life: Life
    monitoring: Monitoring
    limits: Limits | None
    user: User | None
    sandbox: bool
    console: bool
    network: str
    paths: Paths


def for_check(libc: Libc, options: Options) -> Config:
    """As `resolve`, for --check, which needs no arguments and takes none. As it is to change
    nothing of the host's, overlay and volumes are checked like a launch's and then left out.
    """
    options.refuse_arguments(rows.CHECK)
    found = resolve(libc, options.replace(arguments=(NO_ROOT, "1")))
    check_volumes(found.files)
    files = found.files.replace(root_path=SAMPLE_ROOT, overlay=None, volumes=())
    return found.replace(files=files)


def check_volumes(files: Files) -> None:
    """Raises UsageError for one that is no directory of this host, PermissionDeniedError for one
    that this user can't get to.
    """
    what = "--volume can't be used"
    for directory in (volume.host_directory for volume in files.volumes):
        try:
            is_directory = stat.S_ISDIR(os.stat(directory).st_mode)
        except PermissionError:
            why, remedy = "permission denied", "check its directories"
            raise PermissionDeniedError(what, directory, why, remedy) from None
        except OSError:
            is_directory = False
        if not is_directory:
            why, remedy = "it is no directory of this host", "make it, or name another"
            raise UsageError(what, directory, why, remedy)


def resolve(libc: Libc, options: Options) -> Config:
    """Check and convert all that a launch needs. Raises UsageError for the first fault, BusyError
    for a name that can't be looked up for now.
    """
    if len(options.arguments) != 2:
        raise UsageError(
            "can't read the command line",
            f"{len(options.arguments)} arguments",
            "ROOT_PATH and LOCAL_PORT are needed, and nothing else",
            "give them; arguments for the app go after --",
        )
    root_path, local_port = options.arguments
    allow, hosts = _allow(libc, options)
    return Config(
        guest=Guest(
            vcpus=options.value(rows.CPUS),
            memory_mib=options.value(rows.MEMORY),
            exec_paths=options.value(rows.EXEC),
            app_arguments=tuple(
                rows.guest_text(f"argument {number} of the app", text)
                for number, text in enumerate(options.app_arguments, 1)
            ),
            variables=_variables(options),
            rlimits=_rlimits(options),
        ),
        files=_files(options, root_path, hosts),
        policy=Policy(
            guest_port=options.value(rows.GUEST_PORT),
            listen=_listen(libc, options, local_port),
            allow=allow,
            client_timeout=options.value(rows.CLIENT_TIMEOUT),
        ),
        life=Life(
            grace_period=options.value(rows.GRACE_PERIOD),
            ready_timeout=options.value(rows.READY_TIMEOUT),
            die_with_parent=options.value(rows.DIE_WITH_PARENT),
        ),
        monitoring=Monitoring(
            notify_socket=_inherited(options, "NOTIFY_SOCKET"),
            metrics=_metrics(options, local_port),
            health=_health(options),
        ),
        limits=_limits(options),
        user=options.value(rows.USER),
        sandbox=_sandbox(options),
        console=options.value(rows.CONSOLE),
        network=_network_kind(options),
        paths=Paths(
            libkrun=options.value(rows.LIBKRUN),
            libkrunfw=options.value(rows.LIBKRUNFW),
            passt=options.value(rows.PASST),
            search=_inherited(options, "PATH") or SEARCH_PATH,
        ),
    )


def _sandbox(options: Options) -> bool:
    if options.value(rows.SANDBOX) == "strict":
        return True
    for option in rows.OPTIONS:
        if option.needs_sandbox and options.has(option):
            raise UsageError(
                "--sandbox off can't be used",
                options.source(option),
                "it is the sandbox that keeps it",
                "leave one of them out",
            )
    return False


def _metrics(options: Options, local_port: str) -> str | None:
    """In a directory, each VM has a file of its own."""
    path = options.value(rows.METRICS)
    if path is not None and os.path.isdir(path):
        return os.path.join(path, f"krunclient-{local_port}.prom")
    return path


def _limits(options: Options) -> Limits | None:
    limits = Limits(
        cpu_percent=options.value(rows.CPU_QUOTA),
        memory_mib=options.value(rows.MEMORY_MAX),
        pids=options.value(rows.PIDS_MAX),
    )
    return limits if any(value is not None for value in limits.as_dict().values()) else None


def _health(options: Options) -> HealthCheck | None:
    path = options.value(rows.HEALTH_PATH)
    others = (rows.HEALTH_INTERVAL, rows.HEALTH_TIMEOUT, rows.HEALTH_RETRIES, rows.HEALTH_ACTION)
    if path is None:
        for option in others:
            if options.has(option):
                what, why = f"{options.source(option)} can't be used", "nobody asks the app"
                raise UsageError(what, option.name, why, f"give {rows.HEALTH_PATH.name} as well")
        return None
    return HealthCheck(
        path=path,
        interval=options.value(rows.HEALTH_INTERVAL),
        timeout=options.value(rows.HEALTH_TIMEOUT),
        retries=options.value(rows.HEALTH_RETRIES),
        ends_vm=options.value(rows.HEALTH_ACTION) == "exit",
    )


def _network_kind(options: Options) -> str:
    kind = options.value(rows.NETWORK)
    if kind == "passt" and options.value(rows.SANDBOX) == "off":
        what, why = "--sandbox off can't be used", "it is the sandbox that keeps passt in bounds"
        raise UsageError(what, options.source(rows.NETWORK), why, "leave one of them out")
    return kind


def _listen(libc: Libc, options: Options, local_port: str) -> Endpoint:
    text = options.value(rows.BIND)
    packed = model.parse_ip(libc, text)
    if packed is None:
        raise UsageError(
            f"{options.source(rows.BIND)} can't be used",
            text,
            "not an IP address",
            "give 127.0.0.1 or ::1, say",
        )
    return Endpoint(packed=packed, port=rows.whole_number("LOCAL_PORT", local_port, 1, 65535))


def _allow(libc: Libc, options: Options) -> tuple[tuple[Network, ...], tuple[Host, ...]]:
    """What may be connected to, and the names among it with their addresses."""
    texts = options.value(rows.ALLOW)
    if texts == ("none",):
        return (), ()
    source, networks, hosts = options.source(rows.ALLOW), [], []
    for text in texts:
        where, _, port_text = text.rpartition(":")
        what = f"the port of {source} {text}"
        port = None if port_text == "*" else rows.whole_number(what, port_text, 1, 65535)
        if _is_name(where):
            addresses = _addresses(libc, source, where)
            hosts += [(model.ip_text(packed), where) for packed in addresses]
            networks += [
                Network(packed=packed, prefix=8 * len(packed), port=port) for packed in addresses
            ]
        else:
            networks.append(_network(libc, source, text, where, port))
    return tuple(networks), tuple(hosts)


def _is_name(text: str) -> bool:
    """Whether it is a host name, and no address in whatever notation, inet_aton(3)."""
    last = text.rpartition(".")[2]
    letters = text.replace("-", "").replace(".", "").replace("_", "")
    return letters.isascii() and letters.isalnum() and not last[:1].isdigit()


def _addresses(libc: Libc, source: str, name: str) -> tuple[bytes, ...]:
    """All addresses of a name, IPv4 and IPv6, as this host resolves it, each once."""
    import _socket  # socket itself would cost 3 ms more

    try:
        answers = _socket.getaddrinfo(name, None, 0, SOCK_STREAM)
    except OSError as error:
        why = f"this host can't resolve it: {(error.strerror or 'no reason given').lower()}"
        if error.errno == _socket.EAI_AGAIN:
            raise BusyError(f"{source} can't be used", name, why, "try again") from None
        remedy = "give a name that it knows, or an address"
        raise UsageError(f"{source} can't be used", name, why, remedy) from None
    except UnicodeError:  # of the codec idna, for a part that is empty or longer than 63
        why, remedy = "it is no name of a host", "give one, or an address"
        raise UsageError(f"{source} can't be used", name, why, remedy) from None
    packed = (model.parse_ip(libc, str(answer[4][0])) for answer in answers)
    return tuple(dict.fromkeys(one for one in packed if one is not None))


def _network(libc: Libc, source: str, text: str, where: str, port: int | None) -> Network:
    bracketed = where.startswith("[") and where.endswith("]")
    address, slash, prefix_text = (where[1:-1] if bracketed else where).partition("/")
    packed = model.parse_ip(libc, address)
    if packed is None or (len(packed) == 16) != bracketed:
        raise UsageError(
            f"{source} can't be used",
            text,
            "not a name, an address or a network, and a port",
            "give 127.0.0.1:8443, 10.0.0.0/8:443, [::1]:* or db.example:5432, say, or none alone",
        )
    bits = 8 * len(packed)
    prefix = bits
    if slash:
        prefix = rows.whole_number(f"the prefix of {source} {text}", prefix_text, 0, bits)
    if int.from_bytes(packed, "big") & ((1 << (bits - prefix)) - 1):
        why = f"the address has bits beyond the first {prefix}"
        raise UsageError(f"{source} can't be used", text, why, "give the network's own address")
    return Network(packed=packed, prefix=prefix, port=port)


def _files(options: Options, root_path: str, hosts: tuple[Host, ...]) -> Files:
    overlay = options.value(rows.OVERLAY)
    state = options.value(rows.STATE_DIR)
    if overlay and state:
        raise UsageError(
            "--overlay and --state-dir can't be used",
            overlay,
            "they exclude each other",
            "give one",
        )
    if state:
        overlay = os.path.join(state, _name_for(os.path.realpath(root_path)))
    if overlay and _overlap(overlay, root_path):
        raise UsageError(
            "the overlay can't be used",
            overlay,
            "it is inside ROOT_PATH, or ROOT_PATH is inside it",
            "give another directory",
        )
    return Files(
        root_path=root_path,
        overlay=overlay,
        overlay_size_mib=options.value(rows.OVERLAY_SIZE),
        volumes=options.value(rows.VOLUME),
        hosts=hosts,
    )


def _overlap(one: str, other: str) -> bool:
    one, other = (os.path.realpath(path).rstrip("/") + "/" for path in (one, other))
    return one.startswith(other) or other.startswith(one)


def _name_for(path: str) -> str:
    """A file name that is this path's alone, and tells it to people."""
    name = path.strip("/").replace("%", "%25").replace("-", "%2D").replace("/", "-") or "%2F"
    if len(os.fsencode(name)) <= MAX_FILE_NAME_BYTES:
        return name
    from hashlib import sha256

    return f"{name[:40]}-{sha256(os.fsencode(path)).hexdigest()}"


def _variables(options: Options) -> tuple[tuple[str, Secret], ...]:
    variables = {name: Secret(value) for name, value in BASE_VARIABLES}
    for name in INHERITED_VARIABLES:
        variables[name] = _variable(name, Secret(_inherited(options, name)))
    for given in options.value(rows.ENV):
        value = given.value or options.environment.get(given.name)
        if value is None:
            raise UsageError(
                "can't pass a variable",
                given.place,
                "it is not set in krunclient's environment",
                "set it, or give NAME=VALUE",
            )
        variables[given.name] = _variable(given.name, value)
    return tuple(variables.items())


def _rlimits(options: Options) -> tuple[Rlimit, ...]:
    """Those that were asked for, the last of each name; open files as many as the guest takes."""
    files = Rlimit(name="RLIMIT_NOFILE", soft=rows.MAX_OPEN_FILES, hard=rows.MAX_OPEN_FILES)
    given = {limit.name: limit for limit in (files, *options.value(rows.RLIMIT))}
    return tuple(given.values())


def _inherited(options: Options, name: str) -> str:
    """A variable of krunclient's own environment, empty if it is not set."""
    found = options.environment.get(name)
    return found.reveal() if found else ""


def _variable(name: str, value: Secret) -> Secret:
    rows.guest_text(f"variable {name}", f"{name}={value.reveal()}")
    return value
