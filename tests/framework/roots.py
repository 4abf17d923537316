"""Root file systems for guests, from the least that can be launched to a whole one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from target import ARCHITECTURE
from tests.framework import guests
from tests.framework.elf import elf
from tests.framework.paths import ROOTFS

CADDYFILE = """
{
    admin off
    auto_https off
    grace_period GRACE
}
:80 {
    @made path /large /smaller
    handle @made {
        root * /dev/shm
        file_server
    }
    respond /api/status `{"eventNumber": 1}`
    respond "hello from go"
}
"""

# Little memory, in MiB, in which a guest comes up and can be made to panic.
SMALL = str(max(96, ARCHITECTURE.least_memory_mib))

# A shell that has a status of its own when it is asked to stop, with a web server or without.
STATUS_WHEN_ASKED = 6
WHEN_ASKED = f"trap 'exit {STATUS_WHEN_ASKED}' INT"
GRACEFUL_HTTPD = f"{WHEN_ASKED}; httpd -f -p 80 -h /www & while :; do wait; done"
GRACEFUL_APP = f"{WHEN_ASKED}; echo started; while :; do sleep 1; done"
HTTPD = "mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www"


def static_root(directory: Path) -> Path:
    """A root with a static program that does nothing: enough where no guest boots."""
    program = directory / "bin/app"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_bytes(elf())
    program.chmod(0o755)
    return directory


def busybox_root(directory: Path, script: str | None = None) -> Path:
    """A root that holds busybox, and a shell script as /bin/app where one is given."""
    (directory / "bin").mkdir(parents=True)
    shutil.copy2(guests.BUSYBOX, directory / "bin/busybox")
    shutil.copy2(guests.PROBE, directory / "bin/probe")
    for applet in guests.APPLETS.read_text().split():
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    if script is not None:
        write_app(directory, f"#!/bin/sh\nexport PATH=/bin\n{script}\n")
    return directory


def caddy_root(directory: Path, prepare: str = "", grace: str = "0") -> Path:
    """The project's own root file system with a real Go server as the app.

    `prepare` is a line of shell that runs before it, `grace` how long it waits for its clients at a
    stop: 0 is for ever.
    """
    shutil.copytree(ROOTFS, directory, symlinks=True)
    shutil.copy2(guests.CADDY, directory / "bin/caddy")
    shutil.copy2(guests.BUSYBOX, directory / "bin/busybox")
    shutil.copy2(guests.LIBZSTD, directory / ARCHITECTURE.library_directory)
    (directory / "etc/Caddyfile").write_text(CADDYFILE.replace("GRACE", grace))
    write_app(
        directory,
        f"#!/bin/busybox sh\n{prepare}\n"
        "exec /bin/caddy run --config /etc/Caddyfile --adapter caddyfile\n",
    )
    return directory


def write_app(root: Path, text: str) -> None:
    app = root / "bin/app"
    app.write_text(text)
    app.chmod(0o755)


def open_to(user: int, *paths: Path) -> None:
    """Give trees to a user, as an unprivileged process manager would have them."""
    for path in paths:
        for found in (path, *path.rglob("*")):
            os.chown(found, user, user, follow_symlinks=False)
