"""The options, one row each: what --help, the environment and the config know of an option.

A converter takes the place where the texts were given (`--memory` or `KRUNCLIENT_MEMORY`), for its
error, and the texts; it tells what they alone can tell and raises UsageError for the rest.
"""

from __future__ import annotations

import os

from krunclient.bindings.libc import RLIMITS
from krunclient.errors import UsageError
from krunclient.log import FORMATS, LEVELS
from krunclient.model import Rlimit, User, Volume
from krunclient.record import Record
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Generic, TypeVar

    Value = TypeVar("Value", covariant=True)
    One = Callable[[str, str], Value]  # of one text
    All = Callable[[str, tuple[str, ...]], Value]
else:
    Value = None

    class Generic:  # importing typing costs a launch 5 ms
        def __class_getitem__(cls, _parameter: object) -> type:
            return cls


ENVIRONMENT_PREFIX = "KRUNCLIENT_"

# MAX_ARG_STRLEN of <linux/binfmts.h>: execve(2) in the guest refuses a longer NAME=VALUE or
# argument, the terminating NUL included.
MAX_ARG_BYTES = 128 * 1024
# libkrun's init takes settings of its own from variables of these names.
INIT_PREFIX = "KRUN_"
INIT_NAMES = ("HOSTNAME",)

MAX_OVERLAY_MIB = 2**20
MAX_ID = 2**32 - 2  # (uid_t)-1 means no id at all
MIN_SECONDS, MAX_SECONDS = 0.1, 86400
MAX_OPEN_FILES = 2**20  # fs.nr_open of the guest's kernel
RLIMIT_NAMES = {name.removeprefix("RLIMIT_").lower(): name for name in RLIMITS}
UNLIMITED, RLIM_INFINITY = "unlimited", 2**64 - 1  # <linux/resource.h>
MAX_PIDS = 2**22  # PID_MAX_LIMIT of <linux/threads.h>
MAX_CPUS = 255  # krun_set_vm_config takes them as uint8_t
# The bundled kernel starts with 64 MiB; with 32 it does not fit, and libkrun aborts.
MIN_MEMORY_MIB = 64
MAX_MEMORY_MIB = 2**32 - 1  # krun_set_vm_config takes it as uint32_t


class Option(Record, Generic[Value]):
    """One row.

    `metavar` is empty for a flag, which takes no value. `default` is the value if the option is
    not given, `default_text` what people are told of it if that is more. A `repeatable` one
    collects its texts, else the last wins. One that `needs_sandbox` is refused without. The texts
    of a `secret` one are hidden from /proc. An `action` takes the place of a launch, and can't be
    set in the environment.
    """

    name: str
    help: str
    default: Value
    convert: All[Value]
    metavar: str = ""
    default_text: str = ""
    repeatable: bool = False
    needs_sandbox: bool = False
    secret: bool = False
    action: bool = False

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return ENVIRONMENT_PREFIX + self.name[2:].upper().replace("-", "_")


class GivenVariable(Record):
    """One --env. `place` names it in errors; without a `value` it is krunclient's own."""

    place: str
    name: str
    value: Secret | None


# Converters


def last(convert: One[Value]) -> All[Value]:
    return lambda source, texts: convert(source, texts[-1])


def each(convert: One[Value]) -> All[tuple[Value, ...]]:
    return lambda source, texts: tuple(convert(source, text) for text in texts)


def as_given(_source: str, text: str) -> str:
    return text


def is_set(_source: str, _texts: tuple[str, ...]) -> bool:
    return True


def _digits(text: str) -> int | None:
    """int() takes more than digits, and no more than about 4,300 of them. None for all else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def whole_number(source: str, text: str, low: int, high: int) -> int:
    found = _digits(text)
    if found is not None and low <= found <= high:
        return found
    raise UsageError(
        f"{source} can't be used",
        text if len(text) <= 40 else text[:40] + "...",
        f"not a whole number from {low} to {high}",
        "give one",
    )


def number(low: int, high: int) -> All[int]:
    return last(lambda source, text: whole_number(source, text, low, high))


def choice(*choices: str) -> All[str]:
    def convert(source: str, text: str) -> str:
        if text in choices:
            return text
        raise UsageError(f"{source} can't be used", text, "no such choice", "|".join(choices))

    return last(convert)


def seconds(source: str, text: str) -> float:
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


def seconds_or_none(source: str, text: str) -> float | None:
    """0 is no limit."""
    return seconds(source, text) or None


def positive_seconds(source: str, text: str) -> float:
    found = seconds(source, text)
    if found >= MIN_SECONDS:
        return found
    raise UsageError(
        f"{source} can't be used", text[:40], "too short a time", f"give {MIN_SECONDS} or more"
    )


def http_path(source: str, text: str) -> str:
    """The target of a request, RFC 9112: it becomes a line of one."""
    if text.startswith("/") and all("!" <= character <= "~" for character in text):
        return text
    raise UsageError(
        f"{source} can't be used",
        text[:40],
        "not a path of a URL",
        "give one that begins with /, other characters than ASCII as %XX",
    )


def host_path(source: str, text: str) -> str:
    """Absolute, whatever it begins with."""
    if text:
        try:
            return os.path.abspath(text)
        except OSError:  # getcwd(2)
            why, remedy = "the working directory is gone", "give a path that begins with /"
            raise UsageError(f"{source} can't be used", text, why, remedy) from None
    raise UsageError(f"{source} can't be used", "''", "it is empty", "give a path")


def absolute_path(source: str, text: str) -> str:
    if text.startswith("/"):
        return text
    raise UsageError(
        f"{source} can't be used",
        text,
        "what is loaded or run is named by its absolute path alone",
        "give a path that begins with /",
    )


def guest_path(source: str, text: str) -> str:
    if not text.startswith("/") or text.endswith("/"):
        raise UsageError(
            f"{source} can't be used",
            text,
            "not the absolute path of a program",
            "give a path that begins with / as the guest sees it",
        )
    return guest_text(source, text)


def guest_text(thing: str, text: str) -> str:
    """A text that can become an argument or a variable of the guest's program."""
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


def volume(source: str, text: str) -> Volume:
    rest = text.removesuffix(":ro")
    host_directory, _, guest_directory = rest.rpartition(":")
    parts = guest_directory.split("/")
    if not host_directory or parts[0] or {*parts} <= {"", "."} or ".." in parts:
        raise UsageError(
            f"{source} can't be used",
            text,
            "not HOST_DIR:GUEST_DIR or HOST_DIR:GUEST_DIR:ro",
            "give a directory of the host, and an absolute path in the guest without ..",
        )
    return Volume(
        host_directory=host_path(source, host_directory),
        guest_directory=guest_directory,
        read_only=rest != text,
    )


def rlimit(source: str, text: str) -> Rlimit:
    name, _, limits = text.partition("=")
    soft, hard = (_limit(number) for number in limits.partition(":")[::2])
    if name not in RLIMIT_NAMES or soft is None or hard is None:
        raise UsageError(
            f"{source} can't be used",
            text[:40],
            "not NAME=SOFT:HARD",
            f"give core=0:unlimited, say; the names are {' '.join(RLIMIT_NAMES)}",
        )
    most = MAX_OPEN_FILES if name == "nofile" else RLIM_INFINITY
    if soft > hard or hard > most:
        why = "SOFT is more than HARD" if soft > hard else f"the guest's kernel takes up to {most}"
        raise UsageError(f"{source} can't be used", text[:40], why, "give less")
    return Rlimit(name=RLIMIT_NAMES[name], soft=soft, hard=hard)


def _limit(text: str) -> int | None:
    """None for a text that is none."""
    if text == UNLIMITED:
        return RLIM_INFINITY
    found = _digits(text)
    return found if found is not None and found <= RLIM_INFINITY else None


def user(source: str, text: str) -> User:
    uid_text, colon, gid_text = text.partition(":")
    uid = whole_number(source, uid_text, 1, MAX_ID)
    if os.geteuid() != 0:
        raise UsageError(
            f"{source} can't be used", text, "only root can become another user", "leave it out"
        )
    import pwd

    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        gid = whole_number(source, gid_text, 1, MAX_ID) if colon else uid
        return User(uid=uid, gid=gid, groups=())
    gid = whole_number(source, gid_text, 1, MAX_ID) if colon else account.pw_gid
    return User(uid=uid, gid=gid, groups=tuple(os.getgrouplist(account.pw_name, gid)))


def variables(source: str, texts: tuple[str, ...]) -> tuple[GivenVariable, ...]:
    found = []
    for position, text in enumerate(texts, 1):
        name, equals, value = text.partition("=")
        # A name may be a value that lost its name, or a line of one: it is not shown.
        place = f"{source}, number {position}"
        if not (name.isascii() and name.isidentifier()):
            raise UsageError(
                "can't read a variable",
                place,
                "its name is not one of letters, digits and _ that begins with no digit",
                "give NAME=VALUE",
            )
        if name.startswith(INIT_PREFIX) or name in INIT_NAMES:
            raise UsageError(
                "can't pass a variable",
                place,
                f"libkrun's init takes {INIT_PREFIX}* and {' '.join(INIT_NAMES)} as settings of"
                " its own",
                "give it another name",
            )
        found.append(GivenVariable(place=place, name=name, value=Secret(value) if equals else None))
    return tuple(found)


# The rows, in the order in which --help shows them

CPUS = Option(
    name="--cpus", metavar="N", default=1, convert=number(1, MAX_CPUS), help="vCPUs, 1 to 255"
)
MEMORY = Option(
    name="--memory",
    metavar="MIB",
    default=512,
    convert=number(MIN_MEMORY_MIB, MAX_MEMORY_MIB),
    help="guest RAM in MiB",
)
EXEC: Option[tuple[str, ...]] = Option(
    name="--exec",
    metavar="PATH",
    default=("/bin/app", "/app/bin/app"),  # the first that ROOT_PATH has
    default_text="/bin/app, else /app/bin/app",
    convert=last(lambda source, text: (guest_path(source, text),)),
    help="the guest's program, absolute",
)
GUEST_PORT = Option(
    name="--guest-port",
    metavar="PORT",
    default=80,
    convert=number(1, 65535),
    help="guest TCP port that is mapped",
)
BIND = Option(
    name="--bind",
    metavar="ADDRESS",
    default="127.0.0.1",
    convert=last(as_given),
    needs_sandbox=True,
    help="host address of LOCAL_PORT",
)
ALLOW: Option[tuple[str, ...]] = Option(
    name="--allow",
    metavar="WHERE:PORT",
    default=("127.0.0.1:8443",),  # the host's internal service, internal.yesterday.localhost
    convert=each(as_given),
    repeatable=True,
    needs_sandbox=True,
    help="what the guest may connect to, or none",
)
NETWORK = Option(
    name="--network",
    metavar="tsi|passt",
    default="tsi",
    convert=choice("tsi", "passt"),
    help="how the guest's sockets reach the host",
)
PASST: Option[str | None] = Option(
    name="--passt",
    metavar="PATH",
    default=None,
    default_text="the first in PATH",
    convert=last(absolute_path),
    help="the passt that --network passt runs",
)
CLIENT_TIMEOUT: Option[float | None] = Option(
    name="--client-timeout",
    metavar="SECONDS",
    default=20,
    convert=last(seconds_or_none),
    needs_sandbox=True,
    help="how long a client may take nothing of what is sent to it",
)
OVERLAY: Option[str | None] = Option(
    name="--overlay",
    metavar="DIR",
    default=None,
    convert=last(host_path),
    needs_sandbox=True,
    help="keep the guest's writes in DIR",
)
STATE_DIR: Option[str | None] = Option(
    name="--state-dir",
    metavar="DIR",
    default=None,
    convert=last(host_path),
    needs_sandbox=True,
    help="keep them in a subdirectory of ROOT_PATH's own",
)
OVERLAY_SIZE = Option(
    name="--overlay-size",
    metavar="MIB",
    default=64,
    convert=number(1, MAX_OVERLAY_MIB),
    needs_sandbox=True,
    help="bound of writes kept in memory",
)
VOLUME: Option[tuple[Volume, ...]] = Option(
    name="--volume",
    metavar="HOST_DIR:GUEST_DIR[:ro]",
    default=(),
    convert=each(volume),
    repeatable=True,
    needs_sandbox=True,
    help="a host directory inside the guest",
)
USER: Option[User | None] = Option(
    name="--user",
    metavar="UID[:GID]",
    default=None,
    convert=last(user),
    help="when started as root: who the VMM runs as",
)
SANDBOX = Option(
    name="--sandbox",
    metavar="strict|off",
    default="strict",
    convert=choice("strict", "off"),
    help="confine the VMM, or do not",
)
CPU_QUOTA: Option[int | None] = Option(
    name="--cpu-quota",
    metavar="PERCENT",
    default=None,
    convert=number(1, 100 * MAX_CPUS),
    help="processor time of the VM, 100 for one processor's",
)
MEMORY_MAX: Option[int | None] = Option(
    name="--memory-max",
    metavar="MIB",
    default=None,
    convert=number(MIN_MEMORY_MIB, MAX_MEMORY_MIB),
    help="memory of the VM on the host, its RAM and all else",
)
PIDS_MAX: Option[int | None] = Option(
    name="--pids-max",
    metavar="N",
    default=None,
    convert=number(1, MAX_PIDS),
    help="processes and threads of the VM on the host",
)
GRACE_PERIOD: Option[float] = Option(
    name="--grace-period",
    metavar="SECONDS",
    default=8,
    convert=last(seconds),
    help="how long the app may take to stop",
)
READY_TIMEOUT: Option[float | None] = Option(
    name="--ready-timeout",
    metavar="SECONDS",
    default=None,
    convert=last(seconds_or_none),
    help="how long it may take to listen; then the start has failed",
)
DIE_WITH_PARENT = Option(
    name="--die-with-parent",
    default=False,
    convert=is_set,
    help="end at once when the parent process does",
)
ENV: Option[tuple[GivenVariable, ...]] = Option(
    name="--env",
    metavar="NAME[=VALUE]",
    default=(),
    convert=variables,
    repeatable=True,
    secret=True,
    help="one more variable; without =VALUE, krunclient's own value",
)
RLIMIT: Option[tuple[Rlimit, ...]] = Option(
    name="--rlimit",
    metavar="NAME=SOFT:HARD",
    default=(),
    default_text="nofile=1048576:1048576",
    convert=each(rlimit),
    repeatable=True,
    help="a limit of the app's, setrlimit(2)",
)
LIBKRUN: Option[str | None] = Option(
    name="--libkrun",
    metavar="PATH",
    default=None,
    default_text="the bundled pair, then the system's",
    convert=last(absolute_path),
    help="the libkrun to load",
)
LIBKRUNFW: Option[str | None] = Option(
    name="--libkrunfw",
    metavar="PATH",
    default=None,
    default_text="the bundled pair, then the system's",
    convert=last(absolute_path),
    help="the libkrunfw to load",
)
LOG_LEVEL = Option(
    name="--log-level",
    metavar="LEVEL",
    default="warning",
    convert=choice(*LEVELS),
    help="error, warning, info or debug",
)
LOG_FORMAT = Option(
    name="--log-format",
    metavar="FORMAT",
    default="text",
    convert=choice(*FORMATS),
    help="text or json",
)
CONSOLE = Option(
    name="--console",
    default=False,
    convert=is_set,
    help="guest kernel console and libkrun's log on stderr",
)
HEALTH_PATH: Option[str | None] = Option(
    name="--health-path",
    metavar="PATH",
    default=None,
    convert=last(http_path),
    help="GET this from the app, to see whether it is well",
)
HEALTH_INTERVAL: Option[float] = Option(
    name="--health-interval",
    metavar="SECONDS",
    default=10,
    convert=last(positive_seconds),
    help="from one question to the next",
)
HEALTH_TIMEOUT: Option[float] = Option(
    name="--health-timeout",
    metavar="SECONDS",
    default=5,
    convert=last(positive_seconds),
    help="how long an answer may take",
)
HEALTH_RETRIES = Option(
    name="--health-retries",
    metavar="N",
    default=3,
    convert=number(1, 1000),
    help="after so many bad answers in a row the app is unhealthy",
)
HEALTH_ACTION = Option(
    name="--health-action",
    metavar="none|exit",
    default="none",
    convert=choice("none", "exit"),
    help="what an unhealthy app leads to",
)
METRICS: Option[str | None] = Option(
    name="--metrics",
    metavar="PATH",
    default=None,
    convert=last(host_path),
    help="keep a file of metrics there, in Prometheus' text form",
)
PLAN = Option(
    name="--plan",
    default=False,
    convert=is_set,
    action=True,
    help="print the resolved plan as JSON and exit",
)
CHECK = Option(
    name="--check",
    default=False,
    convert=is_set,
    action=True,
    help="report what this host offers and exit",
)
LIST = Option(
    name="--list",
    default=False,
    convert=is_set,
    action=True,
    help="show the VMs that run, and exit",
)
VERSION = Option(
    name="--version",
    default=False,
    convert=is_set,
    action=True,
    help="print the version and exit",
)
HELP = Option(
    name="--help", default=False, convert=is_set, action=True, help="print this text and exit"
)

OPTIONS = (
    *(CPUS, MEMORY, EXEC, GUEST_PORT, BIND, ALLOW, NETWORK, PASST, CLIENT_TIMEOUT),
    *(OVERLAY, STATE_DIR, OVERLAY_SIZE, VOLUME),
    *(
        USER,
        SANDBOX,
        CPU_QUOTA,
        MEMORY_MAX,
        PIDS_MAX,
        GRACE_PERIOD,
        READY_TIMEOUT,
        DIE_WITH_PARENT,
        ENV,
        RLIMIT,
        LIBKRUN,
    ),
    *(LIBKRUNFW, LOG_LEVEL, LOG_FORMAT, CONSOLE),
    *(HEALTH_PATH, HEALTH_INTERVAL, HEALTH_TIMEOUT, HEALTH_RETRIES, HEALTH_ACTION),
    *(METRICS, PLAN, CHECK, LIST, VERSION, HELP),
)
BY_NAME = {option.name: option for option in OPTIONS}
SECRET_NAMES = tuple(option.name.encode() for option in OPTIONS if option.secret)


def default_text(option: Option[object]) -> str:
    """The default as people read it, empty if there is none."""
    if option.default_text or option.action:
        return option.default_text
    if isinstance(option.default, bool):
        return "off"
    if isinstance(option.default, tuple):
        return " ".join(map(str, option.default))
    return "" if option.default is None else f"{option.default}"
