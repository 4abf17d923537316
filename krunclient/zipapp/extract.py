"""The executable's first start: extract the code and the libraries into the user's cache.

It stands at the top of the archive beside `bootstrap`. The unpacking itself is shiv's.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import bootstrap
import loader
import start
from _bootstrap import extract_site_packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType
    from typing import IO, Any

LOCK_SECONDS = 30
TEXTS = (".md", ".txt")  # which no launch needs
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
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ExtractionError(
                "the executable is damaged", archive, str(error), "install it again"
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
            try:
                with zipfile.ZipFile(archive) as content:
                    extract_site_packages(content, Path(target), compile_pyc=False)
                    _compile(target, content.read("loader.py"))
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


def _compile(target: str, first: bytes) -> None:
    """Put the bytecode of all sources into two files: what a launch needs, and the rest. Raises
    OSError.
    """
    top = Path(target, "site-packages")
    codes, packages = {}, []
    for source in sorted((top / "krunclient").rglob("*.py")):
        name = ".".join(source.relative_to(top).with_suffix("").parts)
        if source.name == "__init__.py":
            name = name.rpartition(".")[0]
            packages.append(name)
        codes[name] = _compiled(source.read_bytes(), str(source))
        source.unlink()
    kept = sorted(path for path in top.glob("krunclient/bundled/*/*") if path.suffix not in TEXTS)
    files = {str(path.relative_to(target)): _state(str(path)) for path in kept}
    launch = {name: codes.pop(name) for name in LAUNCH}
    _write(f"{target}/{loader.LATER}", codes)
    content = (files, launch, packages)
    _write(f"{target}/{start.CODE}", (_compiled(first, "loader.py"), content))


def _compiled(source: bytes, path: str) -> CodeType:
    flags = annotations.compiler_flag  # of an import that the build has left out
    return compile(source, path, "exec", flags, dont_inherit=True)  # type: ignore[no-any-return]


def _write(path: str, content: Any) -> None:
    """For `start.read`."""
    data = marshal.dumps(content)
    with open(f"{path}.tmp", "wb") as file:
        file.write(zlib.crc32(data).to_bytes(4, "little") + data)
    os.rename(f"{path}.tmp", path)


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
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
