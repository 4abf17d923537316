"""Run something on a host that lacks a thing: with a /dev of its own, in namespaces of its own."""

from __future__ import annotations

from pathlib import Path

# As root in a new user namespace: works for root and, where user namespaces are on, for all.
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "--"]


def with_own_dev(*commands: str) -> list[str | Path]:
    """A command prefix under which /dev holds null, and what the shell commands put there."""
    script = "; ".join(
        [
            "set -e",
            "directory=$(mktemp -d)",
            "mount -t tmpfs tmpfs $directory",
            ": >$directory/null",
            "mount --bind /dev/null $directory/null",
            "mount --move $directory /dev",
            "rmdir $directory",
            *commands,
            'exec "$@"',
        ]
    )
    return [*UNSHARE, "sh", "-c", script, "sh"]
