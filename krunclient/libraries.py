"""Which libkrun and libkrunfw are loaded: what was given, the bundled pair, the system's."""

from __future__ import annotations

import os

from krunclient.errors import HostError, reason
from krunclient.record import Record

BUNDLED_DIRECTORY = os.path.join(os.path.dirname(__file__), "bundled")
KRUN_SONAMES = ("libkrun.so.2", "libkrun.so.1", "libkrun.so")
KRUNFW_SONAME_PREFIX = b"libkrunfw.so."


class LibraryPair(Record):
    """Absolute paths, and where the pair was found: `bundled`, `system` or `given`."""

    libkrun: str
    libkrunfw: str
    origin: str


def find(libkrun: str | None, libkrunfw: str | None, machine: str) -> LibraryPair:
    """The pair to load: what was given, else the bundled one, else the system's.

    A libkrun opens libkrunfw by a soname that is built into it, so the second is looked for by
    that soname, and one that was given must have it. Raises HostError where one is missing.
    """
    bundled = os.path.join(BUNDLED_DIRECTORY, machine)
    bundled_krun = os.path.join(bundled, "libkrun.so")
    bundled_krunfw = os.path.join(bundled, "libkrunfw.so")
    if libkrun is None and libkrunfw is None and os.path.isfile(bundled_krun):
        # A pair that the build has tried together.
        return LibraryPair(libkrun=bundled_krun, libkrunfw=bundled_krunfw, origin="bundled")
    for path in (libkrun, libkrunfw):
        if path is not None and not os.path.isfile(path):
            raise HostError(
                "a library can't be loaded",
                path,
                "there is no such file",
                "give another by --libkrun and --libkrunfw",
            )
    directories = system_directories(machine)
    found_krun = (
        libkrun
        or (bundled_krun if os.path.isfile(bundled_krun) else None)
        or _find(directories, KRUN_SONAMES)
    )
    if found_krun is None:
        raise HostError(
            "libkrun was not found",
            " ".join(directories),
            "there is none, nor one bundled",
            "install libkrun, or give its path by --libkrun",
        )
    soname = _wanted_krunfw(found_krun)
    if libkrunfw is not None and not _contains(libkrunfw, soname.encode() + b"\0"):
        raise HostError(
            "libkrunfw can't be used",
            libkrunfw,
            f"{found_krun} needs {soname}, and it is not that",
            "give a pair that belongs together",
        )
    candidates = [bundled_krunfw] if os.path.isfile(bundled_krunfw) else []
    found_krunfw = (
        libkrunfw
        or next((path for path in candidates if _contains(path, soname.encode() + b"\0")), None)
        or _find((os.path.dirname(found_krun), *directories), (soname,))
    )
    if found_krunfw is None:
        raise HostError(
            "libkrunfw was not found",
            soname,
            f"{found_krun} needs it",
            "install libkrunfw, or give its path by --libkrunfw",
        )
    given = libkrun is not None or libkrunfw is not None
    return LibraryPair(
        libkrun=found_krun, libkrunfw=found_krunfw, origin="given" if given else "system"
    )


def system_directories(machine: str) -> tuple[str, ...]:
    """Where distributions put libraries. LD_LIBRARY_PATH is no place to look: a process manager
    may have it point into the app's own directory.
    """
    return (
        "/usr/local/lib64",
        "/usr/local/lib",
        "/usr/lib64",
        f"/usr/lib/{machine}-linux-gnu",
        "/usr/lib",
    )


def _find(directories: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    paths = (os.path.join(directory, name) for name in names for directory in directories)
    return next((path for path in paths if os.path.isfile(path)), None)


def _wanted_krunfw(libkrun: str) -> str:
    """The soname of libkrunfw that stands in a libkrun."""
    start = _position(libkrun, KRUNFW_SONAME_PREFIX)
    if start < 0:
        raise HostError(
            "libkrun can't be used",
            libkrun,
            "it does not name a libkrunfw",
            "use libkrun 1.9 or later",
        )
    with open(libkrun, "rb") as file:
        file.seek(start + len(KRUNFW_SONAME_PREFIX))
        text = file.read(8)
    digits = bytes(byte for byte in text[: len(text) - len(text.lstrip(b"0123456789"))])
    return (KRUNFW_SONAME_PREFIX + digits).decode()


def _contains(path: str, text: bytes) -> bool:
    return _position(path, text) >= 0


def _position(path: str, text: bytes) -> int:
    from mmap import ACCESS_READ, mmap

    try:
        with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return content.find(text)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is empty"
        raise HostError(
            "a library can't be read", path, why, "give another by --libkrun and --libkrunfw"
        ) from None
