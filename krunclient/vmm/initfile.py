"""The file that libkrun's init reads its arguments and the app's environment from.

`/.krun_config.json`, in the form of an OCI runtime configuration. It is the only way for values
into the guest: what goes by krun_set_exec ends up, quoted but not escaped, in the guest's kernel
command line.

Three parsers are out there, and none of the C ones reads all of JSON (init/init.c of each
release):

    up to 1.18   no escape works: a value with `"` or a backslash can't be carried
    1.19         short escapes work, \\u does not; control characters are taken as they are
    later        in Rust, by serde_json: all of JSON, and nothing but JSON
"""

from __future__ import annotations

from krunclient.errors import UsageError
from krunclient.record import Record
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from krunclient.model import Guest, LibraryPair

SHORT_ESCAPES = {
    ord('"'): '\\"',
    ord("\\"): "\\\\",
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    ord("\b"): "\\b",
    ord("\f"): "\\f",
}
ALL_ESCAPES = {**{code: f"\\u{code:04x}" for code in range(0x20)}, **SHORT_ESCAPES}


class Dialect(Record):
    """What one generation of libkrun's init understands."""

    escapes: Mapping[int, str]
    forbidden: str  # characters that it can't carry
    terminator: str  # what must follow the text
    max_arguments: int | None  # of the program, its own name included


C_INIT_WITHOUT_ESCAPES = Dialect(
    escapes={},
    forbidden='"\\',
    terminator="\0",
    max_arguments=31,  # an array of 32 pointers, unchecked, its NULL included
)
C_INIT = Dialect(escapes=SHORT_ESCAPES, forbidden="", terminator="\0", max_arguments=None)
RUST_INIT = Dialect(escapes=ALL_ESCAPES, forbidden="", terminator="", max_arguments=None)


def dialect_of(pair: LibraryPair) -> Dialect:
    """What the init inside a libkrun understands."""
    if pair.init == "Rust":
        return RUST_INIT
    if pair.features.krun_fs_add_overlay_file:
        return C_INIT
    return C_INIT_WITHOUT_ESCAPES


def encode(
    exec_path: str, guest: Guest, dialect: Dialect, started_by: tuple[str, ...] = ()
) -> Secret:
    """The file's content, the secrets of the guest's environment included. `started_by` is a
    program with its arguments that starts the app with its own.

    Raises UsageError for a value or a number of arguments that this init can't carry.
    """
    arguments = (*started_by, exec_path, *guest.app_arguments)
    if dialect.max_arguments is not None and len(arguments) > dialect.max_arguments:
        raise UsageError(
            "can't pass the app's arguments",
            f"{len(guest.app_arguments)} arguments",
            f"this libkrun carries {dialect.max_arguments - 1 - len(started_by)}",
            "use libkrun 1.19 or later, or the bundled one",
        )
    for number, argument in enumerate(arguments):
        _check(f"argument {number} of the app", argument, dialect)
    for name, value in guest.variables:
        _check(f"variable {name}", value.reveal(), dialect)
    variables = (f"{name}={value.reveal()}" for name, value in guest.variables)
    members = f'"args":{_array(arguments, dialect)},"env":{_array(variables, dialect)},"cwd":"/"'
    return Secret(f'{{"process":{{{members}}}}}{dialect.terminator}')


def _array(texts: Iterable[str], dialect: Dialect) -> str:
    return "[" + ",".join(f'"{text.translate(dialect.escapes)}"' for text in texts) + "]"


def _check(thing: str, text: str, dialect: Dialect) -> None:
    for character in dialect.forbidden:
        if character in text:
            raise UsageError(
                "can't pass a value to the guest",
                thing,
                f"the init of this libkrun can't carry the character {character}",
                "use libkrun 1.19 or later, or the bundled one",
            )
