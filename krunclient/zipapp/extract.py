"""The executable's first start: extract the code and the libraries into the user's cache.

It stands at the top of the archive beside `bootstrap`. A first start waits for what it imports.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import time
import zlib

import bootstrap
import loader
import start
import unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType
    from typing import IO, Any

LOCK_SECONDS = 30
TEXTS = (".md", ".txt")  # which no launch needs
TOP = "site-packages/"
# What a launch imports, each after those that it imports itself. All of it is there before the
# fork, so that supervisor and VMM share its memory.
LAUNCH = (
    "krunclient",
    "krunclient.bindings",
    "krunclient.record",
    "krunclient.bindings.declare",
    "krunclient.bindings.libc",
    "krunclient.errors",
    "krunclient.log",
    "krunclient.model",
    "krunclient.secret",
    "krunclient.options",
    "krunclient.cli",
    "krunclient.config",
    "krunclient.sandbox",
    "krunclient.sandbox.mounts",
    "krunclient.sandbox.landlock",
    "krunclient.sandbox.confinement",
    "krunclient.plan",
    "krunclient.host",
    "krunclient.bindings.arch",
    "krunclient.host.kvm",
    "krunclient.host.elf",
    "krunclient.host.libraries",
    "krunclient.host.program",
    "krunclient.host.facts",
    "krunclient.supervisor",
    "krunclient.sandbox.process",
    "krunclient.report",
    "krunclient.supervisor.children",
    "krunclient.supervisor.claims",
    "krunclient.supervisor.mappedport",
    "krunclient.supervisor.usage",
    "krunclient.supervisor.memory",
    "krunclient.supervisor.presence",
    "krunclient.supervisor.verdict",
    "krunclient.supervisor.tcptable",
    "krunclient.supervisor.readiness",
    "krunclient.supervisor.announce",
    "krunclient.supervisor.layer",
    "krunclient.supervisor.libkrunlog",
    "krunclient.supervisor.loop",
    "krunclient.supervisor.notifications",
    "krunclient.supervisor.sockets",
    "krunclient.supervisor.stalls",
    "krunclient.supervisor.watch",
    "krunclient.supervisor.run",
    "krunclient.vmm",
    "krunclient.sandbox.privileges",
    "krunclient.sandbox.seccomp",
    "krunclient.sandbox.lifeline",
    "krunclient.sandbox.confine",
    "krunclient.vmm.descriptors",
    "krunclient.vmm.initfile",
    "krunclient.bindings.libkrun",
    "krunclient.vmm.start",
    "krunclient.vmm.main",
    "krunclient.__main__",
)


class ExtractionError(Exception):
    """What failed, on which thing, why, and what to do."""


def into_first_writable(directories: Iterable[str], archive: str, name: str) -> str:
    """Extract into the first directory that takes it, and return the path of what was extracted.

    Raises ExtractionError where none does.
    """
    failures = []
    for directory in directories:
        try:
            _make_private(directory)
            if bootstrap.is_trusted(directory):
                return _extract_once(directory, archive, name)
            failures.append(f"{directory}: others could change it, or it is mounted noexec")
        except (zlib.error, EOFError, ImportError, ValueError) as error:
            raise ExtractionError(
                "the executable is damaged", archive, str(error), "install it again"
            ) from None
        except MemoryError:
            raise ExtractionError(
                "krunclient can't be extracted",
                archive,
                "not enough memory",
                "see which limit has been reached",
            ) from None
        except OSError as error:
            failures.append(f"{directory}: {error.strerror or error}")
    raise ExtractionError(
        "krunclient can't be extracted",
        archive,
        ", ".join(failures),
        "set XDG_CACHE_HOME or TMPDIR to a directory that only you can write to",
    )


def _make_private(directory: str) -> None:
    """Make a directory and its missing parents, unless another user controls what is there."""
    missing = []
    while not os.path.lexists(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    if missing and start.is_guarded(directory):
        for path in reversed(missing):
            os.mkdir(path, 0o700)


def _extract_once(directory: str, archive: str, name: str) -> str:
    target = os.path.join(directory, name)
    with open(os.path.join(directory, "lock"), "w") as lock:
        _lock(lock)
        # Another start may have done it while this one waited.
        if not _is_whole(target):
            _remove(target)
            _remove(f"{target}.tmp")
            try:
                _make(target, archive)
            finally:
                _remove(f"{target}.tmp")
    return target


def _is_whole(target: str) -> bool:
    try:
        _, (files, *_) = start.read(f"{target}/{start.CODE}")
        return all(_state(f"{target}/{name}") == state for name, state in files.items())
    except (OSError, ValueError, EOFError, TypeError):
        return False


def _state(path: str) -> tuple[int, int]:
    """By which `loader` knows a file again."""
    found = os.lstat(path)
    return found.st_size, found.st_ctime_ns


def _make(target: str, path: str) -> None:
    """All files, and the bytecode of all sources in two: what a launch needs, and the rest. Raises
    as `unpack.Archive` does.
    """
    new = f"{target}.tmp"
    os.mkdir(new, 0o700)
    archive = unpack.Archive(path)
    try:
        names = [name for name in archive.names if name.startswith(TOP)]
        sources = [name for name in names if name.endswith(".py")]
        parts = [name for name in names if not name.endswith(".py")]

        def compiled() -> dict[str, CodeType]:
            return {
                _module(name): _compiled(archive.read(name), f"{target}/{name}") for name in sources
            }

        files, codes = unpack.unpack(archive, parts, new, compiled)
        first = _compiled(archive.read("loader.py"), "loader.py")
    finally:
        archive.close()
    packages = [_module(name) for name in sources if name.endswith("/__init__.py")]
    launch = {name: codes.pop(name) for name in LAUNCH}
    _write(f"{new}/{loader.LATER}", codes)
    files.add(loader.LATER)
    states = {name: _state(f"{new}/{name}") for name in files if not name.endswith(TEXTS)}
    _write(f"{new}/{start.CODE}", (first, (states, launch, packages)))
    os.rename(new, target)


def _module(name: str) -> str:
    """Of a source in the archive."""
    return name.removeprefix(TOP).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _compiled(source: bytes, path: str) -> CodeType:
    flags = annotations.compiler_flag  # of an import that the build has left out
    return compile(source, path, "exec", flags, dont_inherit=True)  # type: ignore[no-any-return]


def _write(path: str, content: Any) -> None:
    """For `start.read`."""
    data = marshal.dumps(content)
    with open(path, "xb") as file:
        file.write(zlib.crc32(data).to_bytes(4, "little") + data)


def _lock(file: IO[str]) -> None:
    """Wait for the lock, but not for ever: who holds it may have been stopped."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
