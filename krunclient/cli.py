"""argv and environment to Options: which words were given, not yet what they mean.

One table drives the command line, the `KRUNCLIENT_*` environment and `--help`.
"""

from __future__ import annotations

from krunclient.errors import UsageError
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

USAGE = "krunclient [OPTIONS] ROOT_PATH LOCAL_PORT [-- APP_ARGUMENT...]"
ENVIRONMENT_PREFIX = "KRUNCLIENT_"
REMEDY = "krunclient --help lists what there is"


class Option(Record):
    """One row of the table. `metavar` is empty for a flag, which takes no value."""

    name: str
    help: str
    metavar: str = ""
    repeatable: bool = False
    in_environment: bool = True

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name[2:].upper().replace("-", "_")


OPTIONS = (
    Option(name="--cpus", metavar="N", help="vCPUs (1)"),
    Option(name="--memory", metavar="MIB", help="guest RAM in MiB (512)"),
    Option(name="--exec", metavar="PATH", help="guest program, absolute in the guest (/bin/app)"),
    Option(name="--guest-port", metavar="PORT", help="guest TCP port that is mapped (80)"),
    Option(name="--bind", metavar="ADDRESS", help="host address of LOCAL_PORT (127.0.0.1)"),
    Option(
        name="--allow",
        metavar="ADDRESS:PORT",
        repeatable=True,
        help="what the guest may connect to (127.0.0.1:8443); none allows nothing",
    ),
    Option(name="--overlay", metavar="DIR", help="keep the guest's writes in DIR"),
    Option(
        name="--state-dir", metavar="DIR", help="keep them in a subdirectory of ROOT_PATH's own"
    ),
    Option(name="--overlay-size", metavar="MIB", help="bound of writes kept in memory (64)"),
    Option(
        name="--volume",
        metavar="HOST:GUEST[:ro]",
        repeatable=True,
        help="a host directory inside the guest",
    ),
    Option(name="--user", metavar="UID[:GID]", help="when started as root: who the VMM runs as"),
    Option(name="--sandbox", metavar="strict|off", help="confine the VMM (strict)"),
    Option(
        name="--grace-period",
        metavar="SECONDS",
        help="how long the app may take to stop (8)",
    ),
    Option(
        name="--ready-timeout",
        metavar="SECONDS",
        help="how long it may take to listen; then the start has failed",
    ),
    Option(name="--die-with-parent", help="end at once when the parent process does"),
    Option(
        name="--env",
        metavar="NAME[=VALUE]",
        repeatable=True,
        help="one more variable; without =VALUE, with krunclient's own value",
    ),
    Option(name="--libkrun", metavar="PATH", help="the libkrun to load, an absolute path"),
    Option(name="--libkrunfw", metavar="PATH", help="the libkrunfw to load, an absolute path"),
    Option(name="--log-level", metavar="LEVEL", help="error, warning, info or debug (warning)"),
    Option(name="--log-format", metavar="FORMAT", help="text or json (text)"),
    Option(name="--console", help="guest kernel console and libkrun's log on stderr"),
    Option(name="--plan", in_environment=False, help="print the resolved plan as JSON and exit"),
    Option(name="--check", in_environment=False, help="report what this host offers and exit"),
    Option(name="--version", in_environment=False, help="print the version and exit"),
    Option(name="--help", in_environment=False, help="print this text and exit"),
)
OPTIONS_BY_NAME = {option.name: option for option in OPTIONS}


class Given(Record):
    """The values of one option and where they were given: `--memory` or `KRUNCLIENT_MEMORY`."""

    source: str
    values: tuple[str, ...]


class Options(Record):
    """What the user said. Text is UTF-8; bytes that are not are kept as surrogates."""

    given: Mapping[str, Given]
    arguments: tuple[str, ...]
    app_arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def has(self, name: str) -> bool:
        return name in self.given


def parse(argv: Sequence[bytes], environ: Mapping[bytes, bytes]) -> Options:
    """Read the command line (without the program's name) and the environment.

    Raises UsageError for an option that does not exist, in either place, and for a value that
    is missing or not wanted.
    """
    words = [_text(word) for word in argv]
    environment = {_text(name): _text(value) for name, value in environ.items()}
    end = words.index("--") if "--" in words else len(words)
    given, arguments = _parse_words(words[:end])
    if not ("--help" in given or "--version" in given):  # which an error may ask to look at
        given = {**_parse_environment(environment), **given}
    return Options(
        given=given,
        arguments=tuple(arguments),
        app_arguments=tuple(words[end + 1 :]),
        environment=environment,
    )


def asks_for_json(argv: Sequence[bytes], environ: Mapping[bytes, bytes]) -> bool:
    """Whether errors are wanted as JSON, also where the rest can't be read."""
    words = [b"", *argv]
    given = any(
        word == b"--log-format=json" or words[position : position + 2] == [b"--log-format", b"json"]
        for position, word in enumerate(words)
    )
    return given or environ.get(b"KRUNCLIENT_LOG_FORMAT") == b"json"


def help_text() -> str:
    rows = [(f"{option.name} {option.metavar}".rstrip(), option.help) for option in OPTIONS]
    width = max(len(left) for left, _ in rows)
    lines = [f"  {left:<{width}}  {right}" for left, right in rows]
    return "\n".join(
        [
            f"usage: {USAGE}",
            "",
            "Boot ROOT_PATH as a microVM, run its /bin/app, and open its port 80 on LOCAL_PORT.",
            "",
            *lines,
            "",
            f"Each option but the last four can be set as {ENVIRONMENT_PREFIX}NAME in the",
            "environment; a repeatable one takes one value a line. The command line wins.",
        ]
    )


def _parse_words(words: Sequence[str]) -> tuple[dict[str, Given], list[str]]:
    collected: dict[str, list[str]] = {}
    arguments: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            continue
        name, equals, value = ("--help", "", "") if word == "-h" else word.partition("=")
        option = OPTIONS_BY_NAME.get(name)
        if option is None:
            raise UsageError("can't read the command line", name, "no such option", REMEDY)
        if not option.metavar:
            if equals:
                raise UsageError(
                    "can't read the command line", name, "it takes no value", f"give {name} alone"
                )
            value = "1"
        elif not equals:
            following = next(rest, None)
            if following is None:
                raise UsageError(
                    "can't read the command line",
                    name,
                    "its value is missing",
                    f"give {name} {option.metavar}",
                )
            value = following
        values = collected.setdefault(name, [])
        if not option.repeatable:
            values.clear()
        values.append(value)
    return {
        name: Given(source=name, values=tuple(values)) for name, values in collected.items()
    }, arguments


def _parse_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    by_variable = {option.variable: option for option in OPTIONS if option.in_environment}
    given = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        option = by_variable.get(variable)
        if option is None:
            # A misspelt setting must not leave a guest with the default that it was to change.
            raise UsageError("can't read the environment", variable, "no such setting", REMEDY)
        if not option.metavar and value not in ("", "0", "1"):
            raise UsageError("can't read the environment", variable, "not 0 or 1", "set it to 1")
        values = value.split("\n") if option.repeatable else [value]
        values = [text for text in values if text and (option.metavar or text == "1")]
        if values:
            given[option.name] = Given(source=variable, values=tuple(values))
    return given


def _text(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
