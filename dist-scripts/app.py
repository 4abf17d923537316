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
import subprocess
import sys
from pathlib import Path

import image
from distribute import ROOTFS, copy, named, report, walk
from krunclient.bindings.arch import X86_64
from krunclient.host.elf import Elf

APP = "bin/app"
# What a loader says of a library: "name => path (address)", or "path (address)" alone.
FOUND = re.compile(r"^\s*(?:(?P<name>\S+) => )?(?P<path>/.*) \(0x[0-9a-f]+\)$", re.M)
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
    try:
        if image.is_image(source):
            print(image.unpack(source, directory, arguments.tag))
        else:
            directory.mkdir(parents=True, exist_ok=True)
            files = {**walk(ROOTFS), **program_files(source)}
            added, kept = copy(files, directory)
            report(directory, added, kept)
            if APP in kept:
                sys.exit(f"{directory / APP} is not from here, and was left: remove it first")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


def program_files(program: Path) -> dict[str, Path]:
    """A program and its libraries, each by its name in the app directory.

    A library goes where every loader of its kind looks, whatever directory it was found in.
    """
    with program.open("rb") as file:
        elf = Elf(file.fileno())
        if not elf.is_for(X86_64.elf_machine):
            sys.exit(
                f"{program} is neither a program for {X86_64.machine} nor an OCI image: of a script"
                " or another language's files make an image with its interpreter, by podman build"
                " and podman save --format oci-archive say"
            )
        loader = elf.interpreter()
    files = {APP: program.resolve()}
    if loader is None:
        return files
    # Musl's loader looks in /lib, and names no library by an architecture.
    directory = "lib" if "musl" in loader else X86_64.library_directory
    for name, path in libraries(program, loader):
        files[path.lstrip("/") if name is None else f"{directory}/{name}"] = Path(path).resolve()
    return files


def libraries(program: Path, loader: str) -> list[tuple[str | None, str]]:
    """The name and the path of each, as the program's own loader finds them; it has no name where
    the program names its path. The loader is one of them.
    """
    command = (loader, "--list", str(program.resolve()))
    try:
        listed = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"{program} needs {loader}, which is not here: make its app where it runs")
    missing = MISSING.findall(listed.stderr)
    if missing:
        sys.exit(f"{program} needs {', '.join(missing)}, not found: install it, or LD_LIBRARY_PATH")
    if listed.returncode:
        sys.exit(f"{program}: {' '.join(command)} failed: {listed.stderr.strip()}")
    return [(name or None, path) for name, path in FOUND.findall(listed.stdout)]


if __name__ == "__main__":
    main()
