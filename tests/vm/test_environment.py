"""What the app finds: its variables and arguments, byte for byte, and nothing else of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.framework.launch import Launcher

PRINT_ALL = """
cat /proc/self/environ
printf 'CMDLINE'; cat /proc/cmdline
printf 'ARGUMENTS'; for argument; do printf '%s\\0' "$argument"; done
"""
STRANGE = "a \"quoted\" 'word' = \\ back\\\\slash\nsecond line\ttab é 中 \U0001f600 \x01\x1f\x7f"


def environment_of(stdout: bytes) -> dict[str, str]:
    text = stdout.partition(b"CMDLINE")[0].decode()
    return dict(entry.split("=", 1) for entry in text.split("\0") if entry)


def test_values_arrive_byte_for_byte(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root(PRINT_ALL)
    long_value = (STRANGE * 2000)[: 100 * 1024 // 2]
    long_value += "x" * (100 * 1024 - len(long_value.encode()))
    ended = launcher.run(
        "--env", "LONG", "--env", "MORE=a=b ", root, str(port), "--", "one", STRANGE, "", "-x",
        env={"HOST": STRANGE, "INTERNAL_SECRET": STRANGE[::-1], "LONG": long_value, "OTHER": "x"},
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    assert environment_of(ended.stdout) == {
        "HOST": STRANGE,
        "INTERNAL_SECRET": STRANGE[::-1],
        "LONG": long_value,
        "MORE": "a=b ",
        "PATH": "/bin",  # the script's own
        "HOME": "/root",
        "TERM": "linux",
        # libkrun's way to set limits
        "KRUN_RLIMITS": "7=1048576:1048576",
        # what a shell adds
        "SHLVL": "1",
        "PWD": "/",
    }
    arguments = ended.stdout.partition(b"ARGUMENTS")[2].decode()
    assert arguments == "".join(f"{argument}\0" for argument in ("one", STRANGE, "", "-x"))


def test_a_quote_in_a_value_changes_nothing_in_the_kernel_command_line(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root(PRINT_ALL)
    lines = []
    for host in ("plain", '" panic=0 init=/bin/sh "'):
        ended = launcher.run(root, str(port), env={"HOST": host, "INTERNAL_SECRET": "hidden"})
        assert environment_of(ended.stdout)["HOST"] == host
        lines.append(ended.stdout.partition(b"CMDLINE")[2].partition(b"ARGUMENTS")[0])
    assert lines[0] == lines[1]
    assert b"hidden" not in lines[0]


def test_unset_host_and_secret_are_empty(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    bare = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": launcher.environment["XDG_CACHE_HOME"]}
    ended = Launcher(launcher.command, bare).run(new_root(PRINT_ALL), str(port))
    found = environment_of(ended.stdout)
    assert (found["HOST"], found["INTERNAL_SECRET"]) == ("", "")


def test_the_app_has_as_many_open_files_as_its_kernel_takes_and_the_limits_that_were_asked_for(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root("ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -Su; ulimit -Hu")

    def limits(*options: str) -> list[str]:
        ended = launcher.run(*options, root, str(port))
        assert (ended.status, ended.stderr) == (0, b"")
        return ended.stdout.decode().split()

    open_files = limits()[:2]
    assert open_files == ["1048576", "1048576"]
    asked = limits("--rlimit=nofile=64:100", "--rlimit=core=0:unlimited", "--rlimit=nproc=50:60")
    assert asked == ["64", "100", "0", "unlimited", "50", "60"]
