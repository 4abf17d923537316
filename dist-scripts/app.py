"""Make an app directory from what there is. Run by `nox -s app -- SOURCE DIRECTORY`.

SOURCE is a program: it becomes bin/app, with the libraries that its loader finds and the root file
system beside it. A second run brings them up to date, and leaves what else is there alone.

Or SOURCE is an OCI image, a directory or an archive: its files, and a bin/app that starts what its
configuration says, with the environment, the working directory and the user that it names.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import image
from distribute import copy, named, report, walk
from krunclient.host.elf import Elf
from target import ARCHITECTURE, ROOTFS

APP = "bin/app"
# What a loader says of a library: "name => path (address)", or "path (address)" alone.
FOUND = re.compile(r"\s*(?:(?P<name>[^/]+) => (?P<at>.+)|(?P<path>/.*)) \(0x[0-9a-f]+\)")
VDSO = "linux-vdso.so"  # the kernel's own, which is no file
LOADERS = (f"/{ARCHITECTURE.loader}", f"/lib/ld-musl-{ARCHITECTURE.machine}.so.1")
# glibc's and musl's words.
MISSING = re.compile(r"(?:while loading shared libraries:|Error loading shared library) ([^:]+):")


def main() -> None:
    os.umask(0o022)
    name = "nox -s app --"
    parser = argparse.ArgumentParser(name, description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=named, metavar="SOURCE", help="a program or an OCI image")
    parser.add_argument("directory", type=named, metavar="DIRECTORY", help="the app directory")
    parser.add_argument("--tag", help="which of the image's, if there are several")
    arguments = parser.parse_args()
    source, directory = arguments.source, arguments.directory
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit("interrupted"))
    try:
        if image.is_image(source):
            print(image.unpack(source, directory, arguments.tag))
        elif arguments.tag is not None:
            sys.exit(f"{source} is no OCI image, and has no tags")
        else:
            make(source, directory)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


def make(program: Path, directory: Path) -> None:
    """Bring an app directory up to date with a program."""
    needed = program_files(program)
    if not ROOTFS.is_dir():
        sys.exit(f"{ROOTFS} is missing: make it by nox -s rootfs")
    directory.mkdir(parents=True, exist_ok=True)
    added, kept = copy({**walk(ROOTFS), **needed}, directory)
    report(directory, added, kept)
    for name in kept:
        if name in needed:
            sys.exit(f"{directory / name} is not from here, and was left: remove it first")


def program_files(program: Path) -> dict[str, Path]:
    """A program and its libraries, each by its name in the app directory.

    A library goes where every loader of its kind looks, whatever directory it was found in.
    """
    if program.exists() and not program.is_file():
        sys.exit(f"{program} is no file")
    with program.open("rb") as file:
        elf = Elf(file.fileno())
        if not (elf.is_for(ARCHITECTURE.elf_machine) and elf.is_whole_program()):
            sys.exit(
                f"{program} is neither a whole program for {ARCHITECTURE.machine} nor an OCI image"
                " (a directory, or a tar archive): of a script or another language's files make an"
                " image with its interpreter, by podman build and podman save --format oci-archive"
            )
        loader = elf.interpreter()
    if not os.access(program, os.X_OK):
        sys.exit(f"{program} is not executable: chmod +x it")
    files = {APP: program.resolve()}
    if loader is None:
        return files
    # Musl's loader looks in /lib, and names no library by an architecture.
    directory = "lib" if "musl" in loader else ARCHITECTURE.library_directory
    for name, path in libraries(program, loader):
        files[name.lstrip("/") if "/" in name else f"{directory}/{name}"] = path.resolve()
    return files


def libraries(program: Path, loader: str) -> list[tuple[str, Path]]:
    """The name of each and where it is, as the program's own loader finds them. The name is a path
    where the program names that. The loader is one of them.
    """
    if loader not in LOADERS:
        sys.exit(f"{program} names {loader} as its loader, which is none of {', '.join(LOADERS)}")
    command = (loader, "--list", str(program.resolve()))
    # A program or LD_LIBRARY_PATH may name a directory from where the user is.
    here = os.environ.get("NOX_STARTED_IN")
    try:
        listed = subprocess.run(
            command, cwd=here, capture_output=True, text=True, errors="surrogateescape"
        )
    except FileNotFoundError:
        sys.exit(f"{program} needs {loader}, which is not here: make its app where it runs")
    missing = MISSING.findall(listed.stderr)
    if missing:
        sys.exit(f"{program} needs {', '.join(missing)}, not found: install it, or LD_LIBRARY_PATH")
    if listed.returncode:
        sys.exit(f"{program}: {' '.join(command)} failed: {listed.stderr.strip()}")
    found = [FOUND.fullmatch(line) for line in listed.stdout.splitlines() if VDSO not in line]
    if None in found:
        sys.exit(f"{program} needs a library by a path that is none in a guest: {listed.stdout}")
    return [
        (one["name"] or one["path"], Path(here or "", one["at"] or one["path"]))
        for one in found
        if one
    ]


if __name__ == "__main__":
    main()
