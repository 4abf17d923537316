"""Run something on a host that lacks a thing: with a /dev of its own, in namespaces of its own."""

from __future__ import annotations

import os
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
