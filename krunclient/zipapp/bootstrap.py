"""The way into the extracted code where `start` does not find it at once: another place, a first
start, damage, an old Python.

The code and the libraries are extracted once, into a directory of the user's that is named after
the build. It stands in the archive, and imports nothing but what Python has loaded already.

Only the syntax of old Pythons is used here, so that they can be told that they are too old.
"""

import _signal  # built in; `signal` is not, and brings in `enum`
import os
import sys

import loader
import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OLDEST_PYTHON = (3, 10)


def main() -> None:
    """Where Python runs the zip file: called by shiv's first lines, of which nothing is used."""
    # The loader has read one file of the archive by now: its build id is in another.
    build_id = __loader__.get_data("build-id").decode()  # type: ignore[name-defined]
    # ^C ends krunclient as it ends a C program, not with a traceback.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    start.start(sys.path.pop(0), build_id, os.getppid())


def load(archive: str, name: str) -> "Callable[[int | None], None]":
    """What starts a launch, from the best copy that there is or can be made."""
    if sys.version_info < OLDEST_PYTHON:
        loader.fail(
            "Python is too old",
            sys.executable,
            "it is %d.%d" % sys.version_info[:2],
            "run krunclient by python3.10 or later",
            69,
        )
    if "t" in sys.abiflags:  # whose copy `start` does not find: none is made
        loader.fail(
            "Python has no global lock",
            sys.executable,
            "it reserves 1 GiB at its start, more than the VMM may have beside the guest's",
            "run krunclient by a Python with that lock",
            69,
        )
    directories = cache_directories(os.environ, os.geteuid())
    for directory in directories:
        if is_trusted(directory):
            try:
                return start.load(os.path.join(directory, name))
            except (OSError, ValueError, EOFError, TypeError):
                pass  # it has none, or one that is not whole
        if takes_a_copy(directory):
            break
    return start.load(_extract(archive, name, directories))


def cache_directories(environ: "Mapping[str, str]", user: int) -> "list[str]":
    """Where the extracted code may be, best first, with all symbolic links resolved.

    What is checked is then what is used: a link on the way can't be turned in between.
    """
    directories = []
    for variable, rest in (("XDG_CACHE_HOME", "krunclient"), ("HOME", ".cache/krunclient")):
        if environ.get(variable, "").startswith("/"):
            directories.append(os.path.join(environ[variable], rest))
            break
    for parent in (environ.get("TMPDIR", ""), "/tmp", "/var/tmp"):
        if parent.startswith("/"):
            directories.append(os.path.join(parent, "krunclient-%d" % user))
    return [os.path.realpath(directory) for directory in directories]


def takes_a_copy(directory: str) -> bool:
    """Whether a better place than those after it can be had: it is there and can be written to, or
    can be made. A copy in one of those must not keep it from being used.
    """
    existing = directory
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    try:
        guarded = is_trusted(directory) if existing == directory else start.is_guarded(existing)
        return guarded and os.access(existing, os.W_OK)
    except OSError:
        return False


def is_trusted(directory: str) -> bool:
    """As `start` has it; what can't be looked at is not."""
    try:
        return start.is_trusted(directory)
    except OSError:
        return False


def _extract(archive: str, name: str, directories: "list[str]") -> str:
    # Only a first start pays for the imports of this.
    import extract

    try:
        return extract.into_first_writable(directories, archive, name)
    except extract.ExtractionError as error:
        what, thing, why, remedy = error.args
        loader.fail(what, thing, why, remedy, 69)
