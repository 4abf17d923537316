"""What docs/GUESTS.md says of guests: what they can't rely on, each beside the way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework.launch import Launcher

# A line of shell, what it prints, and what the way round prints.
LIMITS = {
    "a directory of ROOT_PATH can't be renamed": (
        "probe rename /old /new; mv /old /moved && probe rename /moved /again",
        ["rename /old /new: EXDEV", "rename /moved /again: ok"],
    ),
    "no O_TMPFILE": (
        "probe tmpfile /; probe tmpfile /dev/shm",
        ["tmpfile /: EOPNOTSUPP", "tmpfile /dev/shm: ok"],
    ),
    "no overlayfs on the root": (
        (
            "over() { mkdir -p $1/up $1/work $1/on;"
            " mount -t overlay -o lowerdir=/old,upperdir=$1/up,workdir=$1/work o $1/on 2>/dev/null"
            " && echo $1 yes || echo $1 no; }; over /; over /dev/shm"
        ),
        ["/ no", "/dev/shm yes"],
    ),
    "shutdown does not wake an accept": (
        "probe poll 0.0.0.0 80; probe shutdown 0.0.0.0 80 & sleep 6; echo it waits",
        ["poll 0.0.0.0 80: ok", "it waits"],
    ),
    "ports below 1024 are root's": (
        (
            "probe bind-as 1000 80; probe bind-as 1000 8080;"
            " echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start; probe bind-as 1000 80"
        ),
        ["bind-as 1000 80: EACCES", "bind-as 1000 8080: ok", "bind-as 1000 80: ok"],
    ),
    "output can't be opened again": (
        (
            "ls /dev/stdout 2>&1 | grep -c No; probe open /dev/fd/1; probe open /proc/self/fd/2;"
            " echo written >&1; mkfifo /log; cat /log & ln -s /log /dev/stdout;"
            " echo x >/dev/stdout; wait"
        ),
        ["1", "open /dev/fd/1: EBUSY", "open /proc/self/fd/2: EBUSY", "written", "x"],
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_guests_is_as_documented_and_so_is_the_way_round(
    launcher: Launcher, new_root: Callable[..., Path], port: int, limit: str
) -> None:
    script, expected = LIMITS[limit]
    root = new_root(script)
    (root / "old").mkdir()
    ended = launcher.run(root, str(port))
    assert ended.stdout.decode().splitlines() == expected, ended
