"""The main job: a server in the guest answers through the host port."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework import languages
from tests.framework.launch import Launcher
from tests.framework.roots import caddy_root


def test_busybox_httpd_answers_twenty_requests_in_a_row(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root("exec httpd -f -p 80 -h /www")
    (root / "www").mkdir()
    (root / "www/index.html").write_text("hello from busybox\n")
    with launcher.serve(root, port) as server:
        assert [server.get() for _ in range(20)] == [b"hello from busybox\n"] * 20


def test_without_a_sandbox_it_is_served_as_well(
    launcher: Launcher, new_root: Callable[..., Path], port: int
) -> None:
    root = new_root("exec httpd -f -p 80 -h /www")
    for name in ("dev", "proc", "sys", "www"):  # the root is read-only then
        (root / name).mkdir()
    (root / "www/index.html").write_text("hello without walls\n")
    with launcher.serve(root, port, "--sandbox=off") as server:
        assert server.get() == b"hello without walls\n"


def test_a_go_server_on_the_projects_root_answers_twenty_requests_in_a_row(
    launcher: Launcher, scratch: Path, port: int
) -> None:
    root = caddy_root(scratch / "caddy")
    with launcher.serve(root, port) as server:
        assert [server.get() for _ in range(20)] == [b"hello from go"] * 20
        assert json.loads(server.get("/api/status")) == {"eventNumber": 1}


@pytest.mark.parametrize(
    ("app", "answer"),
    [
        ("go-static", b"hello from Go\n"),
        ("go-cgo", b"hello from Go\n"),
        ("rust", b"hello from Rust\n"),
        ("python", b"hello from Python as 65534:65534 [200] in /srv\n"),
        ("node", b"hello from Node\n"),
        ("nginx", b"hello from nginx\n"),
    ],
)
def test_an_app_directory_from_a_program_or_an_image_answers(
    launcher: Launcher, scratch: Path, port: int, app: str, answer: bytes
) -> None:
    root = languages.APPS / app
    if "KRUNCLIENT_LIBKRUN" in launcher.environment:
        # It may read a directory from its middle on. By 9p, as an emulated host has the checkout,
        # entries are lost then.
        root = scratch / app
        subprocess.run(["cp", "-a", languages.APPS / app, root], check=True)
    with launcher.serve(root, port) as server:
        assert [server.get() for _ in range(3)] == [answer] * 3
