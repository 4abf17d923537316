"""The guest's stdout and stderr are krunclient's, apart and unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.framework.launch import Launcher


def test_stdout_and_stderr_stay_apart_and_binary_clean(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root("cat /out; cat /err >&2")
    data = bytes(range(256)) * 4096
    (root / "out").write_bytes(data)
    (root / "err").write_bytes(data[::-1])
    ended = launcher.run(root, str(port))
    assert ended.status == 0
    assert ended.stdout == data
    assert ended.stderr == data[::-1]


def test_a_run_that_goes_well_writes_nothing_of_its_own(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    ended = launcher.run(new_root("true"), str(port))
    assert (ended.stdout, ended.stderr, ended.status) == (b"", b"", 0)


def test_the_kernels_console_is_on_stderr_with_console_and_not_without(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root("echo told-on-the-console >/dev/hvc0")
    assert b"told-on-the-console" not in launcher.run(root, str(port)).stderr
    assert b"told-on-the-console" in launcher.run("--console", root, str(port)).stderr
