"""Guest programs for tests: servers from Debian, and small ones compiled here.

`python -m tests.framework.guests` prepares them in build/guests; tests only read them.
"""

from __future__ import annotations

import shutil
import subprocess

import debian
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
    shutil.copy2(next(debian.unpack("busybox-static").glob("**/bin/busybox")), BUSYBOX)


def prepare_passt() -> None:
    """The machine's own suite's."""
    PASST.parent.mkdir(parents=True, exist_ok=True)
    for program in (debian.unpack("passt") / "usr/bin").glob("passt*"):
        shutil.copy2(program, PASST.parent)


def prepare() -> None:
    debian.require("compiler")
    prepare_busybox()
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True)
    APPLETS.write_bytes(applets.stdout)
    shutil.copy2(debian.unpack("caddy") / "usr/bin/caddy", CADDY)
    shutil.copy2(debian.unpack("hey") / "usr/bin/hey", HEY)
    shutil.copy2(next(debian.unpack("libzstd1").rglob(LIBZSTD.name)), LIBZSTD)
    prepare_passt()
    for source in sorted(SOURCES.glob("*.c")):
        target = GUESTS / source.stem
        subprocess.run(
            ["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", target, source], check=True
        )


if __name__ == "__main__":
    prepare()
