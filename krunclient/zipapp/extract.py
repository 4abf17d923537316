"""The executable's first start: extract the code and the libraries into the user's cache.

It stands at the top of the archive beside `bootstrap`. The unpacking itself is shiv's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import zipfile
from pathlib import Path

import bootstrap
from _bootstrap import extract_site_packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class ExtractionError(Exception):
    """What failed, on which thing, why, and what to do."""


def into_first_writable(directories: Iterable[str], archive: str, name: str) -> str:
    """Extract into the first directory that takes it, and return the path of what was extracted.

    Raises ExtractionError where none does.
    """
    failures = []
    for directory in directories:
        try:
            os.makedirs(os.path.dirname(directory), exist_ok=True)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            if not bootstrap.is_trusted(directory):
                failures.append(f"{directory} could be changed by others")
                continue
            return _extract_once(directory, archive, name)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ExtractionError(
                "the executable is damaged", archive, str(error), "install it again"
            ) from None
        except OSError as error:
            failures.append(f"{directory}: {os.strerror(error.errno or 0).lower()}")
    raise ExtractionError(
        "krunclient can't be extracted",
        archive,
        ", ".join(failures),
        "set XDG_CACHE_HOME or TMPDIR to a directory that only you can write to",
    )


def _extract_once(directory: str, archive: str, name: str) -> str:
    target = os.path.join(directory, name)
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another start may have done it while this one waited.
        if not bootstrap.is_whole(target):
            for damaged in (target, f"{target}.tmp"):
                _remove(damaged)
            with zipfile.ZipFile(archive) as content:
                extract_site_packages(content, Path(target), compile_pyc=True, compile_workers=1)
            _write_manifest(target)
    return target


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
            lines.append(f"{found.st_size} {found.st_mtime_ns} {os.path.relpath(path, target)}")
    temporary = os.path.join(target, f"{bootstrap.MANIFEST}.tmp")
    with open(temporary, "w") as manifest:
        manifest.write("\n".join([*lines, "end"]))
    os.rename(temporary, os.path.join(target, bootstrap.MANIFEST))
