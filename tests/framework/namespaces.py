"""Run something on a host that lacks a thing: with a /dev of its own, in namespaces of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Root needs no user namespace, and in a chroot gets none.
USER_NAMESPACE = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
UNSHARE = ["unshare", *USER_NAMESPACE, "--mount", "--"]


def with_own_dev(*commands: str) -> list[str | Path]:
    """A command prefix under which /dev holds null, and what the shell commands put there."""
    script = "; ".join(
        [
            "set -e",
            "directory=$(mktemp -d)",
            "mount -n -t tmpfs tmpfs $directory",
            ": >$directory/null",
            "mount -n --bind /dev/null $directory/null",
            "mount -n --move $directory /dev",
            "rmdir $directory",
            *commands,
            'exec "$@"',
        ]
    )
    return [*UNSHARE, "sh", "-c", script, "sh"]


def with_own_network() -> list[str | Path]:
    """A command prefix under which there is a loopback device and no other."""
    # SIOCSIFFLAGS of <linux/sockios.h>, with IFF_UP.
    up = 'ioctl(socket.socket(), 0x8914, struct.pack("16sH14x", b"lo", 1))'
    script = f"from fcntl import ioctl; import os, socket, struct, sys; {up}"
    run = "os.execvp(sys.argv[1], sys.argv[1:])"
    return [*UNSHARE[:-1], "--net", "--", sys.executable, "-c", f"{script}; {run}"]
