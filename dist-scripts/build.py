"""Build the executable: the package and the library pair, packed by shiv.

Run by `nox -s build`, in an environment that has shiv. Two runs on the same sources give the same
bytes: every time in the archive is SOURCE_DATE_EPOCH's, every mode and order is fixed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from shiv import __version__ as shiv_version
from shiv.bootstrap.environment import Environment
from shiv.builder import create_archive
from shiv.constants import BUILD_AT_TIMESTAMP_FORMAT

from lean import lean
from target import EXECUTABLE, MACHINE, SITE_PACKAGES, TOP

SCRIPTS = TOP / "dist-scripts"

# -I and -S keep the caller's Python settings and the system's packages out, and save time. Paths
# are bytes to Linux, and UTF-8 whatever the locale says to everybody who reads our messages.
INTERPRETER = "/usr/bin/python3 -ISXutf8"

# The first lines of the executable. The first stage follows as text, then the zip file. Python
# takes 4 ms longer to start from a zip file than from this. From the first moment on, ^C ends
# krunclient as it ends a C program, not with a traceback. The shell hands on who started it:
# Python, later, would not see that a parent has died meanwhile. A `compile` before the `exec` would
# make the classes of syntax trees.
PROGRAM = ";".join(
    [
        "import _signal as s,sys",
        "s.getsignal(2)is s.default_int_handler and s.signal(2,s.SIG_DFL)",
        'f=open(sys.argv[2],"rb",0)',
        "f.seek({offset:4})",
        "exec(f.read({size}))",
    ]
)
HEAD = f"""\
#!/bin/sh
# krunclient, a zip file behind a first stage in Python. python3 runs this file as well.
exec {INTERPRETER} -c '{PROGRAM}' "$PPID" "$0" "$@"
"""

# Both wheels are built on glibc 2.28.
WHEEL_PLATFORM = "manylinux_2_28_{machine}"
LIBRARIES = {
    "libkrun.so": ("smolmachines", "smol/libkrun.so"),
    "libkrunfw.so": ("microsandbox", "microsandbox/_bundled/lib/libkrunfw.so.5.6.1"),
}
FIRST_STAGE = TOP / "krunclient/zipapp"

# A first start unpacks a large file by parts, on each processor one. A byte says which.
PART_BYTES = 2**19
MAX_FILES = 256

# What runs in the guest: a program of its own, without a C library.
GUEST_PROGRAMS = TOP / "krunclient/guest"
C_FLAGS = ("-Os", "-static", "-s", "-nostdlib", "-ffreestanding", "-Wall", "-Wextra", "-Werror")
# All of zig that such a program needs.
COMPILER_PARTS = ("ziglang/zig", "ziglang/lib/include/", "ziglang/lib/std/")

# The first moment that a zip file can hold, for want of a better one.
DEFAULT_EPOCH = 315532800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=EXECUTABLE)
    arguments = parser.parse_args()
    shutil.rmtree(SITE_PACKAGES, ignore_errors=True)
    copy_package(SITE_PACKAGES)
    add_libraries(SITE_PACKAGES, fetch_wheels(MACHINE), MACHINE)
    add_guest_programs(SITE_PACKAGES, MACHINE)
    fix_modes(SITE_PACKAGES)
    pack(SITE_PACKAGES, arguments.output)
    size = arguments.output.stat().st_size
    digest = hashlib.sha256(arguments.output.read_bytes()).hexdigest()
    print(f"{os.path.relpath(arguments.output)}: {size / 2**20:.1f} MiB, sha256 {digest}")


def copy_package(site_packages: Path) -> None:
    shutil.copytree(
        TOP / "krunclient",
        site_packages / "krunclient",
        ignore=shutil.ignore_patterns("__pycache__", "bundled", FIRST_STAGE.name, "*.[ch]"),
    )
    for source in (site_packages / "krunclient").rglob("*.py"):
        source.write_bytes(lean(source.read_bytes()))


def fetch_wheels(machine: str) -> dict[str, Path]:
    """The wheels of the library pair by name."""
    directory = TOP / "build/wheels" / machine
    platform = f"--platform={WHEEL_PLATFORM.format(machine=machine)}"
    download("bundle.txt", directory, "--python-version=3.11", platform)
    # A wheel's name begins with that of its project.
    return {wheel.name.partition("-")[0]: wheel for wheel in directory.glob("*.whl")}


def download(lock: str, directory: Path, *options: str) -> None:
    """Fetch wheels by pip against the hashes of a lock."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", f"--dest={directory}"]
    command += [f"--requirement={SCRIPTS / 'requirements' / lock}", *options]
    subprocess.run(command, check=True)


def add_libraries(site_packages: Path, wheels: dict[str, Path], machine: str) -> None:
    bundled = site_packages / "krunclient/bundled"
    (bundled / machine).mkdir(parents=True)
    for name, (project, member) in LIBRARIES.items():
        with zipfile.ZipFile(wheels[project]) as wheel:
            (bundled / machine / name).write_bytes(wheel.read(member))
    shutil.copytree(SCRIPTS / "licences", bundled / "licences")


def add_guest_programs(site_packages: Path, machine: str) -> None:
    for source in sorted(GUEST_PROGRAMS.glob("*.c")):
        output = site_packages / "krunclient/bundled" / machine / f"guest-{source.stem}"
        compile_for_guest(source, output, machine)


def compile_for_guest(source: Path, output: Path, machine: str, *flags: str) -> None:
    """A program that begins with start.h."""
    zig = fetch_compiler()
    target = ("-target", f"{machine}-linux-musl", f"-I{GUEST_PROGRAMS}")
    cache = str(zig.parent / "cache")
    environment = {"ZIG_LOCAL_CACHE_DIR": cache, "ZIG_GLOBAL_CACHE_DIR": cache}
    command: list[str | Path] = [zig, "cc", *target, *C_FLAGS, *flags, "-o", output, source]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def fetch_compiler() -> Path:
    """The program zig, unpacked once from its wheel."""
    lock = SCRIPTS / "requirements/compiler.txt"
    directory = TOP / "build/compiler" / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    if not directory.is_dir():
        temporary = directory.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        download(lock.name, temporary)
        (wheel,) = temporary.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            parts = [name for name in archive.namelist() if name.startswith(COMPILER_PARTS)]
            archive.extractall(temporary, parts)
        wheel.unlink()
        (temporary / COMPILER_PARTS[0]).chmod(0o755)
        temporary.rename(directory)
    return directory / COMPILER_PARTS[0]


def fix_modes(directory: Path) -> None:
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def pack(site_packages: Path, output: Path) -> None:
    """Pack with shiv, then put the first stage beside shiv's own bootstrap."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH))
    built_at = datetime.fromtimestamp(epoch, tz=timezone.utc)
    environment = Environment(
        built_at=built_at.strftime(BUILD_AT_TIMESTAMP_FORMAT), shiv_version=shiv_version
    )
    temporary = output.with_name(output.name + ".tmp")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as name:
        packed, by_shiv = Path(name, "packed"), Path(name, "by-shiv")
        shutil.copytree(site_packages, packed, copy_function=copy_in_parts)
        create_archive(
            sources=[packed],
            target=by_shiv,
            interpreter=INTERPRETER,
            main="bootstrap:main",
            env=environment,
            compressed=False,
        )
        # Of its own files shiv takes the modes and the order that they have on this disk.
        with zipfile.ZipFile(by_shiv) as archive:
            files = {name: archive.read(name) for name in sorted(archive.namelist())}
    assert environment.build_id is not None
    first_stage = {path.name: path.read_bytes() for path in sorted(FIRST_STAGE.glob("*.py"))}
    build_id = identity(environment.build_id, first_stage.values())
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, data in files.items():
            add(archive, name, data, built_at)
        end = max(one.header_offset for one in archive.infolist())
        for name, source in first_stage.items():
            add(archive, name, source, built_at)
        add(archive, "build-id", build_id.encode(), built_at)
        add(archive, "contents", contents(archive.infolist()).encode(), built_at)
    put_head(temporary, build_id, end)
    temporary.rename(output)


def contents(packed: Iterable[zipfile.ZipInfo]) -> str:
    """What a first start reads, a line each, as `unpack` has it."""
    lines = []
    for one in packed:
        if one.filename.startswith(("site-packages/", "loader.py")):
            assert one.compress_type == zipfile.ZIP_DEFLATED
            place = one.header_offset + len(one.FileHeader())
            numbers = f"{one.CRC:08x} {place} {one.compress_size} {one.file_size}"
            lines.append(f"{numbers} {one.filename}\n")
    assert len(lines) <= MAX_FILES
    return "".join(lines)


def copy_in_parts(source: str, target: str) -> None:
    """For copytree. The name of a part ends with its place in the file: NAME@OFFSET. Where there is
    none, the file has a hole.
    """
    assert "@" not in Path(source).name
    data = Path(source).read_bytes()
    if len(data) <= PART_BYTES:
        Path(target).write_bytes(data)
        return
    for offset in range(0, len(data), PART_BYTES):
        part = data[offset : offset + PART_BYTES]
        if any(part) or offset + PART_BYTES >= len(data):
            Path(f"{target}@{offset}").write_bytes(part)


def identity(packed: str, first_stage: Iterable[bytes]) -> str:
    """By which a copy is known: what shiv has packed, and the code that makes a copy of it."""
    return hashlib.sha256(packed.encode() + b"".join(first_stage)).hexdigest()[:16]


def put_head(archive: Path, build_id: str, end: int) -> None:
    """Put the shell's line and the first stage in front. What is read without a checksum of its own
    begins not before `end`.
    """
    whole = archive.read_bytes()
    # Closed first: where 0, 1 or 2 was closed, it has taken that number.
    call = "\nf.close()\ndel sys.argv[0]\nparent = int(sys.argv.pop(0))\n"
    checked = f"{len(whole) - end}, {zlib.crc32(whole[end:])}"
    call += f'start(sys.argv[0], "{build_id}", parent, {checked})\n'
    source = ast.unparse(ast.parse(lean((FIRST_STAGE / "start.py").read_bytes())))
    first_stage = (source + call).encode()
    offset = len(HEAD.format(offset=0, size=len(first_stage)))
    head = HEAD.format(offset=offset, size=len(first_stage))
    archive.write_bytes(head.encode() + first_stage + whole)
    archive.chmod(0o755)


def add(archive: zipfile.ZipFile, name: str, data: bytes, built_at: datetime) -> None:
    information = zipfile.ZipInfo(name, date_time=built_at.timetuple()[:6])
    information.compress_type = zipfile.ZIP_DEFLATED
    information.external_attr = 0o100644 << 16
    archive.writestr(information, data)


if __name__ == "__main__":
    main()
