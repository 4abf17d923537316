"""The executable's first stage: from the zip file to the extracted code, and on into it.

It stands at the top of the archive, runs before anything else, and imports nothing but what
Python has loaded already. The code and the libraries are extracted once, into a directory of the
user's that is named after the build; each start then checks that it is whole: a list of all files
with size and time of change is stored beside them. What is damaged is extracted anew.

Only the syntax of old Pythons is used here, so that they can be told that they are too old.
"""

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
    if sys.version_info < OLDEST_PYTHON:
        _fail(
            "Python is too old",
            sys.executable,
            "it is %d.%d" % sys.version_info[:2],
            "run krunclient by python3.10 or later",
        )
    archive = sys.path[0]
    # The loader has read one file of the archive by now: its build id is in another.
    build_id = __loader__.get_data("build-id").decode()  # type: ignore[name-defined]
    name = "%s-%s" % (build_id, sys.implementation.cache_tag)
    for directory in cache_directories(os.environ, os.geteuid()):
        target = os.path.join(directory, name)
        if is_trusted(directory) and is_whole(target):
            break
    else:
        target = _extract(archive, name)
    sys.path[0] = os.path.join(target, "site-packages")
    from krunclient.__main__ import main as launch

    launch()


def cache_directories(environ: "Mapping[str, str]", user: int) -> "list[str]":
    """Where the extracted code may be, best first."""
    directories = []
    for variable, rest in (("XDG_CACHE_HOME", "krunclient"), ("HOME", ".cache/krunclient")):
        if environ.get(variable, "").startswith("/"):
            directories.append(os.path.join(environ[variable], rest))
            break
    for parent in (environ.get("TMPDIR", ""), "/tmp", "/var/tmp"):
        if parent.startswith("/"):
            directories.append(os.path.join(parent, "krunclient-%d" % user))
    return directories


def is_trusted(directory: str) -> bool:
    """Whether nobody but this user and root can change what the path leads to.

    The directory is the user's own and closed to others; each one above it belongs to the user or
    to root, and is writable by others only where the sticky bit keeps them from renaming.
    """
    user = os.geteuid()
    try:
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
            return False
        path = os.path.realpath(directory)
        while path != "/":
            path = os.path.dirname(path)
            above = os.lstat(path)
            if above.st_uid not in (0, user):
                return False
            if above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX:
                return False
    except OSError:
        return False
    return True


def is_whole(target: str) -> bool:
    """Whether every file of the manifest is there as it was extracted."""
    try:
        with open(os.path.join(target, MANIFEST)) as file:
            lines = file.read().split("\n")
        if lines.pop() != "end":
            return False
        for line in lines:
            size, changed, name = line.split(" ", 2)
            found = os.lstat(os.path.join(target, name))
            if (
                found.st_size != int(size)
                or found.st_mtime_ns != int(changed)
                or not stat.S_ISREG(found.st_mode)
            ):
                return False
    except (OSError, ValueError):
        return False
    return True


def _extract(archive: str, name: str) -> str:
    # Only a first start pays for the imports of this.
    sys.path.insert(0, archive)
    import extract

    del sys.path[0]
    try:
        return extract.into_first_writable(
            cache_directories(os.environ, os.geteuid()), archive, name
        )
    except extract.ExtractionError as error:
        _fail(*error.args)


def _fail(what: str, thing: str, why: str, remedy: str) -> "NoReturn":
    line = "krunclient: error: %s: %s: %s; %s\n" % (what, thing, why, remedy)
    os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(69)
