"""Copy the root file system into app directories. Run by `nox -s distribute -- [DIRECTORY...]`.

With `--package DIRECTORY` it makes a directory that NexusHub zips: the root file system with
krunclient in it, as regular files alone, since what unpacks it makes no symbolic links.

What is missing is added, what an earlier run put there and is outdated is replaced. A file that
the app has of its own is never touched: a record in the app directory tells which are ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from target import EXECUTABLE, ROOTFS, TOP

APPS = TOP / "dist/github.com/tomyedwab/yesterday/apps"
RECORD = ".krunclient-rootfs.json"


def main() -> None:
    os.umask(0o022)
    name = "nox -s distribute --"
    parser = argparse.ArgumentParser(name, description=__doc__, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--package", type=named, metavar="DIRECTORY", help="make one for NexusHub")
    which.add_argument("directories", nargs="*", type=named, metavar="DIRECTORY", default=[])
    arguments = parser.parse_args()
    found = (path for path in APPS.glob("*/") if path.is_dir())
    directories = arguments.directories or sorted(found)
    try:
        if arguments.package:
            arguments.package.mkdir(parents=True, exist_ok=True)
            report(arguments.package, *make_package(ROOTFS, EXECUTABLE, arguments.package))
        elif not directories:
            sys.exit(f"no app directory: none was given, and {APPS.relative_to(TOP)} has none")
        else:
            for directory in directories:
                if not directory.is_dir():
                    sys.exit(f"{directory} is no directory")
                report(directory, *distribute(ROOTFS, directory))
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


def named(argument: str) -> Path:
    """A directory as the user named it, who may have been elsewhere when starting nox."""
    return Path(os.environ.get("NOX_STARTED_IN", ""), argument)


def report(directory: Path, added: list[str], kept: list[str]) -> None:
    print(f"{directory}: {len(added)} added or replaced, {len(kept)} of the app's own kept")
    for name in kept:
        print(f"  kept {name}")


def make_package(rootfs: Path, executable: Path, package: Path) -> tuple[list[str], list[str]]:
    """Bring the directory of a package up to date. Returns what was written, and what was kept."""
    files = {name: source.resolve() for name, source in walk(rootfs).items()}
    return copy({**files, "bin/krunclient": executable}, package)


def distribute(rootfs: Path, app: Path) -> tuple[list[str], list[str]]:
    """Bring an app directory up to date. Returns what was written, and what was kept."""
    return copy(walk(rootfs), app)


def copy(sources: Mapping[str, Path], app: Path) -> tuple[list[str], list[str]]:
    """Copy what is missing or outdated to its name in a directory."""
    record_path = app / RECORD
    record = read_record(record_path)
    added, kept = [], []
    for name, source in sources.items():
        target = app / name
        check_inside(app, target.parent)
        if source.is_dir() and not source.is_symlink():
            if not os.path.lexists(target):
                target.mkdir()
                target.chmod(source.stat().st_mode & 0o7777)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        wanted = digest(source)
        present = digest(target) if os.path.lexists(target) else None
        if present == wanted:
            record[name] = wanted
        elif present is None or present == record.get(name):
            replace(source, target)
            record[name] = wanted
            added.append(name)
        else:
            kept.append(name)
    # By a name that nobody knows: an app directory may hold a link by any other.
    with tempfile.NamedTemporaryFile("w", dir=app, delete=False) as file:
        file.write(json.dumps(record, indent=1, sort_keys=True) + "\n")
    Path(file.name).chmod(0o644)
    Path(file.name).rename(record_path)
    return added, kept


def read_record(path: Path) -> dict[str, str]:
    """One that is broken tells nothing: then all that differs is the app's own."""
    try:
        record = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def walk(rootfs: Path) -> dict[str, Path]:
    """What is in a root file system, by its name there, directories before what is in them."""
    return {str(path.relative_to(rootfs)): path for path in sorted(rootfs.rglob("*"))}


def digest(path: Path) -> str:
    """What a file is: the kind, the mode, and a hash of the content."""
    if path.is_symlink():
        return f"link {path.readlink()}"
    if not path.is_file():
        return "other"
    mode = path.stat().st_mode & 0o7777
    return f"file {mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def replace(source: Path, target: Path) -> None:
    """Put a copy in place at once: a guest that runs keeps the file that it has open."""
    temporary = target.with_name(f".{target.name}.krunclient")
    temporary.unlink(missing_ok=True)
    shutil.copy2(source, temporary, follow_symlinks=False)
    temporary.rename(target)


def check_inside(app: Path, directory: Path) -> None:
    """A symbolic link in an app directory must not lead the copy out of it."""
    root = app.resolve()
    if not directory.resolve().is_relative_to(root):
        sys.exit(f"{directory} leads out of {app}: nothing was written there")


if __name__ == "__main__":
    main()
