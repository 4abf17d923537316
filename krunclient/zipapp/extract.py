"""The executable's first start: extract the code and the libraries into the user's cache.

It stands at the top of the archive beside `bootstrap`. The unpacking itself is shiv's.
"""

from __future__ import annotations

import compileall
import fcntl
import os
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import bootstrap
from _bootstrap import extract_site_packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO

LOCK_SECONDS = 30


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
    if missing and bootstrap.is_guarded(directory):
        for path in reversed(missing):
            os.mkdir(path, 0o700)


def _extract_once(directory: str, archive: str, name: str) -> str:
    target = os.path.join(directory, name)
    with open(os.path.join(directory, "lock"), "w") as lock:
        _lock(lock)
        # Another start may have done it while this one waited.
        if not bootstrap.is_whole(target):
            _remove(target)
            try:
                with zipfile.ZipFile(archive) as content:
                    extract_site_packages(content, Path(target), compile_pyc=False)
                _compile(target)
                _write_manifest(target)
            finally:
                _remove(f"{target}.tmp")
    return target


def _compile(target: str) -> None:
    """Replace each source by its bytecode, without docstrings: an import then looks at one file
    instead of two, and so does the check that all is whole. Raises OSError.
    """
    if not compileall.compile_dir(target, quiet=2, legacy=True, optimize=2):
        raise OSError("the code can't be compiled")
    for source in Path(target).rglob("*.py"):
        source.unlink()


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


def _write_manifest(target: str) -> None:
    lines = []
    for parent, _, files in sorted(os.walk(target)):
        for file in sorted(files):
            path = os.path.join(parent, file)
            found = os.stat(path)
            lines.append(f"{found.st_size} {found.st_ctime_ns} {os.path.relpath(path, target)}")
    temporary = os.path.join(target, f"{bootstrap.MANIFEST}.tmp")
    with open(temporary, "w") as manifest:
        manifest.write("\n".join([*lines, "end"]))
    os.rename(temporary, os.path.join(target, bootstrap.MANIFEST))
