"""Guest programs for tests: servers from Debian, and small ones compiled here.

`python -m tests.framework.guests` prepares them in build/guests; tests only read them.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import debian
from target import IS_FOREIGN, MACHINE
from tests.framework.paths import GUESTS, TOP

BUSYBOX = GUESTS / "busybox"
APPLETS = GUESTS / "busybox-applets"  # the names that busybox answers to
CADDY = GUESTS / "caddy"
LIBZSTD = GUESTS / "libzstd.so.1"  # which Debian's caddy is linked to
PROBE = GUESTS / "probe"
PASST = GUESTS / "passt/passt"  # and its builds for other processors beside it
HEY = GUESTS / "hey"  # loads a web server
SOURCES = TOP / "tests/guests"


def prepare_busybox() -> None:
    """The one that the probe for a working KVM, and the demo, need."""
    GUESTS.mkdir(parents=True, exist_ok=True)
    shutil.copy2(_busybox(MACHINE), BUSYBOX)


def _busybox(machine: str) -> Path:
    return next(debian.unpack("busybox-static", machine=machine).glob("**/bin/busybox"))


def prepare_passt() -> None:
    """The machine's own suite's."""
    PASST.parent.mkdir(parents=True, exist_ok=True)
    for program in (debian.unpack("passt", machine=MACHINE) / "usr/bin").glob("passt*"):
        shutil.copy2(program, PASST.parent)


def prepare() -> None:
    debian.require(f"compiler-for-{MACHINE}" if IS_FOREIGN else "compiler")
    prepare_busybox()
    # A foreign one does not run here; both are of one version.
    busybox = _busybox(platform.machine())
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True)
    APPLETS.write_bytes(applets.stdout)
    for program in (CADDY, HEY):
        package = debian.unpack(program.name, machine=MACHINE)
        shutil.copy2(package / "usr/bin" / program.name, program)
    shutil.copy2(next(debian.unpack("libzstd1", machine=MACHINE).rglob(LIBZSTD.name)), LIBZSTD)
    prepare_passt()
    compiler = f"{MACHINE}-linux-gnu-gcc" if IS_FOREIGN else "gcc"
    for source in sorted(SOURCES.glob("*.c")):
        target = GUESTS / source.stem
        flags = ("-static", "-O1", "-Wall", "-Werror")
        subprocess.run([compiler, *flags, "-o", target, source], check=True)


if __name__ == "__main__":
    prepare()
