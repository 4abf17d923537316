"""argv and environment to Options: which words were given, not yet what they mean.

The rows of `options` drive the command line, the `KRUNCLIENT_*` environment and `--help`.
"""

from __future__ import annotations

from krunclient import options as rows
from krunclient.errors import UsageError
from krunclient.options import BY_NAME, ENVIRONMENT_PREFIX, OPTIONS
from krunclient.record import Record
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeVar

    from krunclient.options import Option

    Value = TypeVar("Value")

USAGE = "krunclient [OPTIONS] ROOT_PATH LOCAL_PORT [-- APP_ARGUMENT...]"
REMEDY = "krunclient --help lists what there is"


class Given(Record):
    """The texts of one option and where they were given: `--memory` or `KRUNCLIENT_MEMORY`."""

    source: str
    texts: tuple[Secret, ...]


class Options(Record):
    """What the user said. Text is UTF-8; bytes that are not are kept as surrogates.

    Each text of an option and each variable may be a secret, or hold one by mistake: none shows
    itself before its converter has read it.
    """

    given: Mapping[str, Given]
    arguments: tuple[str, ...]
    app_arguments: tuple[str, ...]
    environment: Mapping[str, Secret]

    def has(self, option: Option[Value]) -> bool:
        return option.name in self.given

    def source(self, option: Option[Value]) -> str:
        """Where an option was given, to name it in an error."""
        return self.given[option.name].source if self.has(option) else option.name

    def refuse_arguments(self, option: Option[Value]) -> None:
        """Raises UsageError for arguments beside an action that takes none."""
        if self.arguments:
            raise UsageError(
                "can't read the command line",
                f"{len(self.arguments)} arguments",
                f"{option.name} takes options alone",
                "give it no ROOT_PATH and no LOCAL_PORT",
            )

    def origins(self) -> dict[str, str]:
        """Where the value of each option comes from: its name or its variable's, or `default`."""
        return {
            option.name: self.source(option) if self.has(option) else "default"
            for option in OPTIONS
            if not option.action
        }

    def value(self, option: Option[Value]) -> Value:
        """What was given, converted, or the default. Raises UsageError."""
        if not self.has(option):
            return option.default
        given = self.given[option.name]
        return option.convert(given.source, tuple(text.reveal() for text in given.texts))


def parse(argv: Sequence[bytes], environ: Mapping[bytes, bytes]) -> Options:
    """Read the command line (without the program's name) and the environment.

    Raises UsageError for an option that does not exist, in either place, and for a value that
    is missing or not wanted.
    """
    words = [_text(word) for word in argv]
    environment = {_text(name): Secret(_text(value)) for name, value in environ.items()}
    end = words.index("--") if "--" in words else len(words)
    given, arguments = _parse_words(words[:end])
    # --help and --version work in any environment: an error may have asked to look at them.
    if rows.HELP.name not in given and rows.VERSION.name not in given:
        given = {**_parse_environment(environment), **given}
    return Options(
        given=given,
        arguments=tuple(arguments),
        app_arguments=tuple(words[end + 1 :]),
        environment=environment,
    )


def asks_for_json(argv: Sequence[bytes], environ: Mapping[bytes, bytes]) -> bool:
    """Whether errors are wanted as JSON, even if the rest can't be read."""
    words = [b"", *argv]
    name, variable = rows.LOG_FORMAT.name.encode(), rows.LOG_FORMAT.variable.encode()
    given = any(
        word == name + b"=json" or words[position : position + 2] == [name, b"json"]
        for position, word in enumerate(words)
    )
    return given or environ.get(variable) == b"json"


def help_text() -> str:
    lines = []
    for option in OPTIONS:
        left = f"{option.name} {option.metavar}".rstrip()
        default = rows.default_text(option) if option.metavar else ""
        lines.append((left, f"{option.help} ({default})" if default else option.help))
    width = max(len(left) for left, _ in lines)
    program, port = rows.EXEC.default[0], rows.GUEST_PORT.default
    return "\n".join(
        [
            f"usage: {USAGE}",
            "",
            f"Boot ROOT_PATH as a microVM, run its {program}, open its port {port} on LOCAL_PORT.",
            "",
            *(f"  {left:<{width}}  {right}" for left, right in lines),
            "",
            f"Each option but the last five can be set as {ENVIRONMENT_PREFIX}NAME in the",
            "environment; a repeatable one takes one value a line. The command line wins.",
        ]
    )


def _parse_words(words: Sequence[str]) -> tuple[dict[str, Given], list[str]]:
    collected: dict[str, list[Secret]] = {}
    arguments: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            continue
        name, equals, value = ("--help", "", "") if word == "-h" else word.partition("=")
        option = BY_NAME.get(name)
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
        texts = collected.setdefault(name, [])
        if not option.repeatable:
            texts.clear()
        texts.append(Secret(value))
    return {
        name: Given(source=name, texts=tuple(texts)) for name, texts in collected.items()
    }, arguments


def _parse_environment(environment: Mapping[str, Secret]) -> dict[str, Given]:
    by_variable = {option.variable: option for option in OPTIONS if not option.action}
    given = {}
    for variable, secret in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        option = by_variable.get(variable)
        if option is None:
            # A misspelt setting must not leave a guest with the default that it was to change.
            raise UsageError("can't read the environment", variable, "no such setting", REMEDY)
        value = secret.reveal()
        if not option.metavar and value not in ("", "0", "1"):
            raise UsageError("can't read the environment", variable, "not 0 or 1", "set it to 1")
        lines = value.split("\n") if option.repeatable else [value]
        texts = tuple(Secret(line) for line in lines if line and (option.metavar or line == "1"))
        if texts:
            given[option.name] = Given(source=variable, texts=texts)
    return given


def _text(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
