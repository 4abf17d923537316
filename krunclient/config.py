"""Options to Config: every value checked, in its own type and unit."""

from __future__ import annotations

import os

from krunclient import address
from krunclient.address import Endpoint
from krunclient.errors import UsageError
from krunclient.log import FORMATS, LEVELS
from krunclient.record import Record
from krunclient.sandbox.mounts import Files, Volume
from krunclient.sandbox.privileges import User
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.cli import Given, Options

# What the guest gets beside HOST, INTERNAL_SECRET and --env. TERM is the kernel's own default
# for the console that libkrun gives.
BASE_VARIABLES = (
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("TERM", "linux"),
)
INHERITED_VARIABLES = ("HOST", "INTERNAL_SECRET")

NEEDS_SANDBOX = ("--allow", "--bind", "--overlay", "--overlay-size", "--state-dir", "--volume")

# libkrun's init takes settings of its own from variables of these names.
INIT_PREFIX = "KRUN_"

# MAX_ARG_STRLEN of <linux/binfmts.h>: execve(2) in the guest refuses a longer NAME=VALUE or
# argument, the terminating NUL included.
MAX_ARG_BYTES = 128 * 1024

LOOPBACK = bytes((127, 0, 0, 1))
INTERNAL_PORT = 8443  # the host's internal service, internal.yesterday.localhost
MAX_OVERLAY_MIB = 2**20
MAX_FILE_NAME_BYTES = 200  # NAME_MAX is 255
MAX_ID = 2**32 - 2  # (uid_t)-1 means no id at all

MAX_SECONDS = 86400
MAX_CPUS = 255  # krun_set_vm_config takes them as uint8_t
# The bundled kernel starts with 64 MiB; with 32 it does not fit, and libkrun aborts.
MIN_MEMORY_MIB = 64
MAX_MEMORY_MIB = 2**32 - 1  # and this as uint32_t


class Config(Record):
    """What is to be run, as the user asked for it.

    `root_path` and the library paths may hold bytes that are no UTF-8, as surrogates.
    `variables` is the guest's whole environment, in order. Times are in seconds. `notify_socket`
    is where sd_notify(3) sends to, empty where nobody waits.
    """

    root_path: str
    guest_port: int
    cpus: int
    memory_mib: int
    exec_path: str
    app_arguments: tuple[str, ...]
    variables: tuple[tuple[str, Secret], ...]
    listen: Endpoint
    allow: tuple[Endpoint, ...]
    files: Files
    user: User | None
    sandbox: bool
    libkrun: str | None
    libkrunfw: str | None
    console: bool
    grace_period: float
    ready_timeout: float | None
    die_with_parent: bool
    notify_socket: str


def log_level(options: Options) -> str:
    """The lowest level that is printed. Raises UsageError for one that does not exist."""
    return _one(options, "--log-level", "warning", _choice(LEVELS))


def log_format(options: Options) -> str:
    """Raises UsageError for one that does not exist."""
    return _one(options, "--log-format", "text", _choice(FORMATS))


def for_check(libc: Libc, options: Options) -> Config:
    """As `resolve`, for --check, which needs no arguments and takes none."""
    if options.arguments:
        raise UsageError(
            "can't read the command line",
            f"{len(options.arguments)} arguments",
            "--check takes options alone",
            "give it no ROOT_PATH and no LOCAL_PORT",
        )
    return resolve(libc, options.replace(arguments=("/", "1")))


def resolve(libc: Libc, options: Options) -> Config:
    """Check and convert all that a launch needs. Raises UsageError for the first fault."""
    if len(options.arguments) != 2:
        raise UsageError(
            "can't read the command line",
            f"{len(options.arguments)} arguments",
            "ROOT_PATH and LOCAL_PORT are needed, and nothing else",
            "give them; arguments for the app go after --",
        )
    root_path, local_port = options.arguments
    sandbox = _one(options, "--sandbox", "strict", _choice(("strict", "off"))) == "strict"
    files = _files(options, root_path)
    if not sandbox:
        for name in NEEDS_SANDBOX:
            if options.has(name):
                raise UsageError(
                    "--sandbox off can't be used",
                    options.given[name].source,
                    "it is the sandbox that keeps it",
                    "leave one of them out",
                )
    exec_path = _one(options, "--exec", "/bin/app", _guest_path)
    return Config(
        root_path=root_path,
        guest_port=_one(options, "--guest-port", 80, _number_between(1, 65535)),
        cpus=_one(options, "--cpus", 1, _number_between(1, MAX_CPUS)),
        memory_mib=_one(options, "--memory", 512, _number_between(MIN_MEMORY_MIB, MAX_MEMORY_MIB)),
        exec_path=exec_path,
        app_arguments=tuple(
            _guest_text(f"argument {number} of the app", text)
            for number, text in enumerate(options.app_arguments, 1)
        ),
        variables=_variables(options),
        listen=Endpoint(
            packed=_one(options, "--bind", LOOPBACK, _ip_of(libc)),
            port=_whole_number("LOCAL_PORT", local_port, 1, 65535),
        ),
        allow=_allow(libc, options),
        files=files,
        user=_one(options, "--user", None, _user),
        sandbox=sandbox,
        libkrun=_one(options, "--libkrun", None, _absolute_path),
        libkrunfw=_one(options, "--libkrunfw", None, _absolute_path),
        console=options.has("--console"),
        grace_period=_one(options, "--grace-period", 8, _seconds),
        ready_timeout=_one(options, "--ready-timeout", None, _seconds) or None,
        die_with_parent=options.has("--die-with-parent"),
        notify_socket=options.environment.get("NOTIFY_SOCKET", ""),
    )


def _allow(libc: Libc, options: Options) -> tuple[Endpoint, ...]:
    given = options.given.get("--allow")
    if given is None:
        return (Endpoint(packed=LOOPBACK, port=INTERNAL_PORT),)
    if given.values == ("none",):
        return ()
    return tuple(_endpoint(libc, given.source, text) for text in given.values)


def _endpoint(libc: Libc, source: str, text: str) -> Endpoint:
    ip, _, port = text.rpartition(":")
    bracketed = ip.startswith("[") and ip.endswith("]")
    packed = address.parse_ip(libc, ip[1:-1] if bracketed else ip)
    if packed is None or (len(packed) == 16 and not bracketed):
        raise UsageError(
            f"{source} can't be used",
            text,
            "not an address and a port",
            "give 127.0.0.1:8443 or [::1]:8443, or none alone",
        )
    number = _whole_number(f"the port of {source} {text}", port, 1, 65535)
    return Endpoint(packed=packed, port=number)


def _ip_of(libc: Libc) -> Converter[bytes]:
    def convert(source: str, text: str) -> bytes:
        packed = address.parse_ip(libc, text)
        if packed is None:
            raise UsageError(
                f"{source} can't be used", text, "not an IP address", "give 127.0.0.1 or ::1, say"
            )
        return packed

    return convert


def _files(options: Options, root_path: str) -> Files:
    volumes = options.given.get("--volume")
    overlay = _one(options, "--overlay", None, _directory)
    state = _one(options, "--state-dir", None, _directory)
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
        overlay_size_mib=_one(options, "--overlay-size", 64, _number_between(1, MAX_OVERLAY_MIB)),
        volumes=tuple(_volume(volumes.source, text) for text in volumes.values) if volumes else (),
    )


def _overlap(one: str, other: str) -> bool:
    one, other = os.path.realpath(one) + "/", os.path.realpath(other) + "/"
    return one.startswith(other) or other.startswith(one)


def _name_for(path: str) -> str:
    """A file name that is this path's alone, and tells it to people."""
    name = path.strip("/").replace("%", "%25").replace("-", "%2D").replace("/", "-") or "%2F"
    if len(os.fsencode(name)) <= MAX_FILE_NAME_BYTES:
        return name
    from hashlib import sha256

    return f"{name[:40]}-{sha256(os.fsencode(path)).hexdigest()}"


def _volume(source: str, text: str) -> Volume:
    rest = text.removesuffix(":ro")
    host_directory, _, guest_directory = rest.rpartition(":")
    parts = guest_directory.split("/")
    if not host_directory or parts[0] or not any(parts) or ".." in parts:
        raise UsageError(
            f"{source} can't be used",
            text,
            "not HOST_DIR:GUEST_DIR or HOST_DIR:GUEST_DIR:ro",
            "give a directory of the host, and an absolute path in the guest without ..",
        )
    return Volume(
        host_directory=os.path.abspath(host_directory),
        guest_directory=guest_directory,
        read_only=rest != text,
    )


def _user(source: str, text: str) -> User:
    uid_text, colon, gid_text = text.partition(":")
    uid = _whole_number(source, uid_text, 1, MAX_ID)
    if os.geteuid() != 0:
        raise UsageError(
            f"{source} can't be used", text, "only root can become another user", "leave it out"
        )
    import pwd

    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        gid = _whole_number(source, gid_text, 1, MAX_ID) if colon else uid
        return User(uid=uid, gid=gid, groups=())
    gid = _whole_number(source, gid_text, 1, MAX_ID) if colon else account.pw_gid
    return User(uid=uid, gid=gid, groups=tuple(os.getgrouplist(account.pw_name, gid)))


def _variables(options: Options) -> tuple[tuple[str, Secret], ...]:
    variables = {name: Secret(value) for name, value in BASE_VARIABLES}
    for name in INHERITED_VARIABLES:
        variables[name] = _variable(name, options.environment.get(name, ""))
    given = options.given.get("--env")
    for number, text in enumerate(given.values if given else (), 1):
        name, equals, value = text.partition("=")
        # A name may be a value that lost its name, or a line of one: it is not shown.
        thing = f"{given.source if given else ''}, number {number}"
        if not _is_variable_name(name):
            raise UsageError(
                "can't read a variable",
                thing,
                "its name is not one of letters, digits and _ that begins with no digit",
                "give NAME=VALUE",
            )
        if name.startswith(INIT_PREFIX):
            raise UsageError(
                "can't pass a variable",
                thing,
                f"libkrun's init takes {INIT_PREFIX}* as settings of its own",
                "give it another name",
            )
        if not equals:
            if name not in options.environment:
                raise UsageError(
                    "can't pass a variable",
                    thing,
                    "it is not set in krunclient's environment",
                    "set it, or give NAME=VALUE",
                )
            value = options.environment[name]
        variables[name] = _variable(name, value)
    return tuple(variables.items())


def _variable(name: str, value: str) -> Secret:
    _guest_text(f"variable {name}", f"{name}={value}")
    return Secret(value)


def _guest_text(thing: str, text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(
            "can't pass a value to the guest", thing, "it is not UTF-8", "encode it, in base64 say"
        ) from None
    if size >= MAX_ARG_BYTES:
        raise UsageError(
            "can't pass a value to the guest",
            thing,
            f"it takes {size} bytes, and Linux allows {MAX_ARG_BYTES - 1}",
            "put it into a file of the root",
        )
    return text


def _is_variable_name(name: str) -> bool:
    return name.isascii() and name.isidentifier()


# A converter takes the place where a text was given, for its error, and the text.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Value = TypeVar("Value")
    Default = TypeVar("Default")
    Converter = Callable[[str, str], Value]


def _one(
    options: Options, name: str, default: Default, convert: Converter[Value]
) -> Value | Default:
    given: Given | None = options.given.get(name)
    return convert(given.source, given.values[-1]) if given else default


def _number_between(low: int, high: int) -> Converter[int]:
    return lambda source, text: _whole_number(source, text, low, high)


def _whole_number(source: str, text: str, low: int, high: int) -> int:
    # int() takes more than digits, and no more than about 4,300 of them.
    if text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high:
        return int(text)
    raise UsageError(
        f"{source} can't be used",
        text if len(text) <= 40 else text[:40] + "...",
        f"not a whole number from {low} to {high}",
        "give one",
    )


def _seconds(source: str, text: str) -> float:
    whole, _, fraction = text.partition(".")
    digits = whole + fraction
    if text.isascii() and digits.isdigit() and len(text) <= 12 and float(text) <= MAX_SECONDS:
        return float(text)
    raise UsageError(
        f"{source} can't be used",
        text[:40],
        f"not a number of seconds from 0 to {MAX_SECONDS}",
        "give one, such as 8 or 0.5",
    )


def _choice(choices: tuple[str, ...]) -> Converter[str]:
    def convert(source: str, text: str) -> str:
        if text in choices:
            return text
        raise UsageError(f"{source} can't be used", text, "no such choice", "|".join(choices))

    return convert


def _directory(_source: str, text: str) -> str:
    return os.path.abspath(text)


def _absolute_path(source: str, text: str) -> str:
    if text.startswith("/"):
        return text
    raise UsageError(
        f"{source} can't be used",
        text,
        "libraries are loaded by absolute path alone",
        "give a path that begins with /",
    )


def _guest_path(source: str, text: str) -> str:
    if not text.startswith("/") or text.endswith("/"):
        raise UsageError(
            f"{source} can't be used",
            text,
            "not the absolute path of a program",
            "give a path that begins with / as the guest sees it",
        )
    return _guest_text(source, text)
