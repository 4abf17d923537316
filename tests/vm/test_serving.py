"""The main job: a server in the guest answers through the host port."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.framework import guests
from tests.framework.launch import Launcher, write_app
from tests.framework.paths import ROOTFS

CADDYFILE = """
{
    admin off
    auto_https off
}
:80 {
    respond /api/status `{"eventNumber": 1}`
    respond "hello from go"
}
"""


def caddy_root(directory: Path) -> Path:
    """The project's own root file system with a real Go server as the app."""
    shutil.copytree(ROOTFS, directory, symlinks=True)
    shutil.copy2(guests.CADDY, directory / "bin/caddy")
    shutil.copy2(guests.BUSYBOX, directory / "bin/busybox")
    shutil.copy2(guests.LIBZSTD, directory / "lib/x86_64-linux-gnu")
    (directory / "etc/Caddyfile").write_text(CADDYFILE)
    write_app(
        directory,
        "#!/bin/busybox sh\nexec /bin/caddy run --config /etc/Caddyfile --adapter caddyfile\n",
    )
    return directory


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
