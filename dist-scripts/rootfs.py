"""Assemble the guest's root file system from rootfs/ and Debian's packages.

Needs no privileges. Run by `nox -s rootfs`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import debian
from target import ARCHITECTURE, MACHINE, ROOTFS, TOP

SOURCE = TOP / "rootfs"

LIBRARY_DIRECTORY = Path(ARCHITECTURE.library_directory)
LOADER = Path(ARCHITECTURE.loader)
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"  # the first place where Go looks
MAX_BYTES = 8 * 2**20


def main() -> None:
    os.umask(0o022)
    temporary = ROOTFS.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    assemble(temporary)
    size = sum(path.lstat().st_size for path in temporary.rglob("*") if not path.is_dir())
    if size >= MAX_BYTES:
        raise SystemExit(f"the root file system has {size} bytes, more than {MAX_BYTES}")
    shutil.rmtree(ROOTFS, ignore_errors=True)
    temporary.rename(ROOTFS)
    print(f"{ROOTFS.relative_to(TOP)}: {size / 2**20:.1f} MiB")


def assemble(target: Path) -> None:
    for directory in ("etc/ssl/certs", LIBRARY_DIRECTORY, LOADER.parent):
        (target / directory).mkdir(parents=True, exist_ok=True)
    for source in sorted((SOURCE / "etc").iterdir()):
        install(source.read_bytes(), target / "etc" / source.name, 0o644)
    for line in (SOURCE / "manifest").read_text().splitlines():
        match line.split():
            case ["directory", path, mode]:
                (target / path).mkdir(parents=True, exist_ok=True)
                (target / path).chmod(int(mode, 8))
            case ["library", package, name]:
                install_library(target, package, name)
            case ["loader", package]:
                install_library(target, package, LOADER.name)
                elsewhere = os.path.relpath(LIBRARY_DIRECTORY, LOADER.parent)
                (target / LOADER).symlink_to(f"{elsewhere}/{LOADER.name}")
            case ["certificates", package]:
                certificates = sorted(debian.unpack(package, machine=MACHINE).rglob("*.crt"))
                bundle = b"".join(path.read_bytes() for path in certificates)
                install(bundle, target / CERTIFICATES, 0o644)
            case [first, *_] if not first.startswith("#"):
                raise SystemExit(f"rootfs/manifest: can't read: {line}")


def install_library(target: Path, package: str, name: str) -> None:
    found = find(debian.unpack(package, machine=MACHINE), name)
    install(found.read_bytes(), target / LIBRARY_DIRECTORY / name, 0o755)


def find(package: Path, name: str) -> Path:
    """A library in an unpacked package: in /lib or, with a merged /usr, in /usr/lib."""
    matches = [path for path in sorted(package.rglob(name)) if path.is_file()]
    if not matches:
        raise SystemExit(f"{package.name} has no {name}")
    return matches[0]


def install(data: bytes, path: Path, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)


if __name__ == "__main__":
    main()
