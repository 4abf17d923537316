"""The executable's first stage: from the zip file to the extracted code, and on into it.

It runs before anything else, and imports nothing but what Python has loaded already. It stands in
front of the archive, where a shell hands it to Python without the cost of looking into a zip file,
and once more in it, for whoever starts the file by a Python of his own.

The code and the libraries are extracted once, into a directory of the user's that is named after
the build; each start then checks that it is whole: a list of all files with size and time of
change (ctime) is stored beside them. What is damaged is extracted anew.

Only the syntax of old Pythons is used here, so that they can be told that they are too old.
"""

import _signal  # built in; `signal` is not, and brings in `enum`
import gc
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

MANIFEST = "manifest"
OLDEST_PYTHON = (3, 10)


def main() -> None:
    """Where Python runs the zip file: called by shiv's first lines, of which nothing is used."""
    # The loader has read one file of the archive by now: its build id is in another.
    build_id = __loader__.get_data("build-id").decode()  # type: ignore[name-defined]
    # ^C ends krunclient as it ends a C program, not with a traceback.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    start(sys.path.pop(0), build_id)


def start(archive: str, build_id: str, parent: "int | None" = None) -> None:
    """`parent` is the process that started this one, if the first line told it."""
    gc.disable()  # until the VMM runs: what a launch makes, it keeps
    if sys.version_info < OLDEST_PYTHON:
        _fail(
            "Python is too old",
            sys.executable,
            "it is %d.%d" % sys.version_info[:2],
            "run krunclient by python3.10 or later",
        )
    # Under nohup, say, a stop would go unheard until the supervisor blocks these and looks at them.
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM):
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
    name = "%s-%s" % (build_id, sys.implementation.cache_tag)
    directories = cache_directories(os.environ, os.geteuid())
    for directory in directories:
        target = os.path.join(directory, name)
        if is_trusted(directory) and is_whole(target):
            break
        if takes_a_copy(directory):
            target = _extract(archive, name, directories)
            break
    else:
        target = _extract(archive, name, directories)
    sys.path.insert(0, os.path.join(target, "site-packages"))
    try:
        from krunclient.__main__ import main as launch
    except Exception:
        # Damage that neither size nor time shows: without its manifest the copy is made anew.
        os.unlink(os.path.join(target, MANIFEST))
        _extract(archive, name, [os.path.dirname(target)])
        for module in [name for name in sys.modules if name.partition(".")[0] == "krunclient"]:
            del sys.modules[module]
        from krunclient.__main__ import main as launch
    launch(parent)


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
        guarded = is_trusted(directory) if existing == directory else is_guarded(existing)
        return guarded and os.access(existing, os.W_OK)
    except OSError:
        return False


def is_trusted(directory: str) -> bool:
    """Whether nobody but this user and root can change what the resolved path leads to.

    The directory is the user's own, closed to others, and libraries can be loaded from it.
    """
    try:
        found = os.lstat(directory)
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & 0o077
            and not os.statvfs(directory).f_flag & os.ST_NOEXEC
            and is_guarded(os.path.dirname(directory))
        )
    except OSError:
        return False


def is_guarded(path: str) -> bool:
    """Whether a directory and each one above it belongs to the user or to root, and is writable
    by others only where the sticky bit keeps them from renaming. Raises OSError.

    The owner of / counts as root: in a user namespace without the host's root, user_namespaces(7),
    everything of his is the overflow user's.
    """
    owners = (0, os.geteuid(), os.lstat("/").st_uid)
    while True:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
            return False
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def is_whole(target: str) -> bool:
    """Whether every file of the manifest is there as it was extracted."""
    try:
        manifest = os.path.join(target, MANIFEST)
        if not stat.S_ISREG(os.lstat(manifest).st_mode):
            return False
        with open(manifest) as file:
            lines = file.read().split("\n")
        if lines.pop() != "end":
            return False
        for line in lines:
            size, changed, name = line.split(" ", 2)
            found = os.lstat(os.path.join(target, name))
            if (
                found.st_size != int(size)
                or found.st_ctime_ns != int(changed)
                or not stat.S_ISREG(found.st_mode)
            ):
                return False
    except (OSError, ValueError):
        return False
    return True


def _extract(archive: str, name: str, directories: "list[str]") -> str:
    # Only a first start pays for the imports of this.
    sys.path.insert(0, archive)
    try:
        import extract
    except ImportError:
        _fail("the executable is damaged", archive, "it is no zip file", "install it again")
    del sys.path[0]
    try:
        return extract.into_first_writable(directories, archive, name)
    except extract.ExtractionError as error:
        _fail(*error.args)


def _fail(what: str, thing: str, why: str, remedy: str) -> "NoReturn":
    line = "krunclient: error: %s: %s: %s; %s\n" % (what, thing, why, remedy)
    os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(69)
