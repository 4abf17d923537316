"""Which libkrun and libkrunfw are loaded: what was given, the bundled pair, the system's."""

from __future__ import annotations

import os
import stat

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.errors import HostError, LaunchError, failed_call
from krunclient.host.elf import Elf
from krunclient.model import Features, LibraryPair

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable

    from krunclient.bindings.arch import Architecture

PACKAGE = os.path.dirname(os.path.dirname(__file__))
KRUN_SONAMES = ("libkrun.so.2", "libkrun.so.1", "libkrun.so")
KRUNFW_SONAME_PREFIX = b"libkrunfw.so."
# What stands in the init inside a libkrun, by the language that it is written in. In the Rust one,
# its parser of JSON and the path that it reads; the C one says so if it can't parse.
C_INIT = b"Error parsing config file"
BUNDLED_INIT = "Rust"
RUST_INIT = (b"serde_json", b"/.krun_config.json")
USE_NEWER = "use libkrun 1.13 or later, or the bundled one"
GIVE_ANOTHER = "give another by --libkrun and --libkrunfw"


def find(libkrun: str | None, libkrunfw: str | None, architecture: Architecture) -> LibraryPair:
    """The pair to load: what was given, else the bundled one, else the system's.

    A libkrun opens libkrunfw by a soname that is built into it, so the second is looked for by
    that soname, beside a libkrun that is not the bundled one too, and one that was given must have
    it. Raises HostError if one is missing or can't be used.
    """
    bundled = _bundled(architecture.machine)
    directories = system_directories(architecture)
    given = [path for path in (libkrun, libkrunfw) if path is not None]
    for path in given:
        try:
            is_regular = stat.S_ISREG(os.stat(path).st_mode)
        except OSError as error:
            raise _unreadable(path, error) from None
        if not is_regular:
            raise HostError(
                "a library can't be loaded", path, "it is no regular file", GIVE_ANOTHER
            )
    found_krun = libkrun or _first((f"{bundled}/libkrun.so",)) or _find(directories, KRUN_SONAMES)
    if found_krun is None:
        others = (name for name in ARCHITECTURES if name != architecture.machine)
        other = next((name for name in others if os.path.isdir(_bundled(name))), None)
        take = f"take the krunclient for {architecture.machine}" if other else "install libkrun"
        raise HostError(
            "libkrun was not found",
            " ".join(directories),
            f"there is none, and the bundled one is for {other}"
            if other
            else "there is none, nor one bundled",
            f"{take}, or give its path by --libkrun",
        )
    features = read_features(found_krun, architecture)
    own = f"{bundled}/libkrun.so"
    if found_krun == own and not given:
        # A pair that the build has tried together.
        found_krunfw, init = f"{bundled}/libkrunfw.so", BUNDLED_INIT
    else:
        found_krunfw = _matching_krunfw(found_krun, libkrunfw, bundled, directories, architecture)
        init = read_init(found_krun)

    def origin(path: str, asked_for: str | None) -> str:
        if path == asked_for:
            return "given"
        if path.startswith(f"{bundled}/"):
            return "bundled"
        return "system" if os.path.dirname(path) in directories else "beside libkrun"

    return LibraryPair(
        libkrun=found_krun,
        libkrunfw=found_krunfw,
        libkrun_origin=origin(found_krun, libkrun),
        libkrunfw_origin=origin(found_krunfw, libkrunfw),
        features=features,
        init=init,
    )


def _bundled(machine: str) -> str:
    return os.path.join(PACKAGE, "bundled", machine)


def _matching_krunfw(
    libkrun: str,
    given: str | None,
    bundled: str,
    directories: tuple[str, ...],
    architecture: Architecture,
) -> str:
    """The libkrunfw whose soname stands in a libkrun: the one that was given, the bundled one, one
    beside that libkrun, or the system's.
    """
    soname = _wanted_krunfw(libkrun)
    name = soname.encode() + b"\0"
    if given is not None:
        if name not in _dynamic_strings("libkrunfw can't be used", given, architecture):
            raise HostError(
                "libkrunfw can't be used",
                given,
                f"{libkrun} needs {soname}, and it is not that",
                "give a pair that belongs together",
            )
        return given
    own, what = f"{bundled}/libkrunfw.so", "libkrunfw can't be used"
    if os.path.isfile(own) and name in _dynamic_strings(what, own, architecture):
        return own
    directories = (os.path.dirname(libkrun), *directories)
    found = _find(directories, (soname,))
    if found is None:
        why = f"{libkrun} needs it, and it is not in {' '.join(directories)}"
        remedy = "install libkrunfw, or name it by --libkrunfw"
        raise HostError("libkrunfw was not found", soname, why, remedy)
    _dynamic_strings(what, found, architecture)
    return found


def read_features(libkrun: str, architecture: Architecture) -> Features:
    """What a libkrun can do, by the names of its functions; nothing of it is run.

    Raises HostError for a file that can't be read or is no libkrun.
    """
    what = "libkrun can't be used"
    strings = _dynamic_strings(what, libkrun, architecture)
    features = Features.of(lambda name: name.encode() + b"\0" in strings)
    if not features.krun_set_root and not features.krun_add_virtiofs3:
        why = "it has no function krun_set_root or krun_add_virtiofs3"
        raise HostError(what, libkrun, why, USE_NEWER)
    if b"krun_init_log\0" not in strings:
        # Before that, no log tells whether a status is the app's.
        raise HostError(what, libkrun, "it has no function krun_init_log", USE_NEWER)
    return features


def _dynamic_strings(what: str, path: str, architecture: Architecture) -> bytes:
    """The names in a library, each NUL-terminated.

    Raises HostError, by `what`, for a file that can't be read or is no whole library.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            elf = Elf(descriptor)
            if not elf.is_for(architecture.elf_machine):
                why = f"it is no library for {architecture.machine}"
                raise HostError(what, path, why, GIVE_ANOTHER)
            if not elf.has_whole_segments():
                # The dynamic loader would map what is missing, and be killed by SIGBUS.
                raise HostError(what, path, "its end is missing", "install it again")
            return elf.dynamic_strings()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from None


def read_init(libkrun: str) -> str:
    """The language of the init inside a libkrun, by its own bytes. It decides how the file for the
    app's arguments has to be written: one that is not understood makes it run a shell instead.

    Raises HostError for a file that can't be read, and where it can't be told.
    """
    content = _mapped(libkrun)
    if content.find(C_INIT) >= 0:
        return "C"
    if all(content.find(text) >= 0 for text in RUST_INIT):
        return "Rust"
    raise HostError(
        "libkrun can't be used",
        libkrun,
        "the init inside it is none that krunclient knows",
        USE_NEWER,
    )


def system_directories(architecture: Architecture) -> tuple[str, ...]:
    """Where distributions put libraries. LD_LIBRARY_PATH is no place to look: a process manager
    may have it point into the app's own directory.
    """
    return (
        "/usr/local/lib64",
        "/usr/local/lib",
        "/usr/lib64",
        f"/usr/{architecture.library_directory}",
        "/usr/lib",
    )


def _first(paths: Iterable[str]) -> str | None:
    return next((path for path in paths if os.path.isfile(path)), None)


def _find(directories: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    return _first(os.path.join(directory, name) for name in names for directory in directories)


def _wanted_krunfw(libkrun: str) -> str:
    """The soname of libkrunfw that stands in a libkrun."""
    content = _mapped(libkrun)
    start = content.find(KRUNFW_SONAME_PREFIX)
    if start < 0:
        raise HostError(
            "libkrun can't be used",
            libkrun,
            "it does not name a libkrunfw",
            USE_NEWER,
        )
    start += len(KRUNFW_SONAME_PREFIX)
    text = content[start : start + 8]
    digits = bytes(byte for byte in text[: len(text) - len(text.lstrip(b"0123456789"))])
    return (KRUNFW_SONAME_PREFIX + digits).decode()


def _mapped(path: str) -> mmap.mmap:
    from mmap import ACCESS_READ, mmap

    try:
        with open(path, "rb", 0) as file:
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError:
        raise HostError("a library can't be read", path, "it is empty", GIVE_ANOTHER) from None


def _unreadable(path: str, error: OSError) -> LaunchError:
    return failed_call("a library can't be loaded", path, error, GIVE_ANOTHER)
