"""The main job from nothing, for people: `nox -s demo`.

`prepare` makes an app directory with a web server that nobody here wrote, Debian's busybox; `run`
boots it and asks it through the mapped port.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import distribute
import target
from tests.framework import guests
from tests.framework.paths import EXECUTABLE, ROOTFS, TOP
from tests.framework.roots import write_app

APP = target.result("demo-app")
PORT = 30080
PAGE = "Hello from a microVM.\n"
BOOT_SECONDS = 120


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def prepare() -> None:
    say(f"making an app directory in {APP.relative_to(TOP)}: the root file system and busybox")
    shutil.rmtree(APP, ignore_errors=True)
    APP.mkdir(parents=True)
    distribute.distribute(ROOTFS, APP)
    guests.prepare_busybox()
    shutil.copy2(guests.BUSYBOX, APP / "bin/busybox")
    (APP / "bin/busybox").chmod(0o755)
    write_app(APP, "#!/bin/busybox sh\nexec /bin/busybox httpd -f -p 80 -h /www\n")
    (APP / "www").mkdir()
    (APP / "www/index.html").write_text(PAGE)


def run() -> int:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        # An emulated host sees this checkout read-only and slowly.
        executable = shutil.copy2(EXECUTABLE, Path(scratch, "krunclient"))
        root = shutil.copytree(APP, Path(scratch, "app"), symlinks=True)
        say(f"krunclient app {PORT}")
        started = time.monotonic()
        process = subprocess.Popen([executable, root, str(PORT)], cwd=scratch)
        try:
            answer = wait_for_answer(process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if answer is None:
        say("the server did not answer")
        return 1
    say(f"http://127.0.0.1:{PORT}/ answered after {time.monotonic() - started:.1f} s:")
    print(f"\n{answer}")
    say("by hand, on a host with KVM:")
    print(f"\n    {EXECUTABLE.relative_to(TOP)} {APP.relative_to(TOP)} {PORT} &")
    curl = "curl --retry 9 --retry-connrefused"
    print(f"    {curl} http://127.0.0.1:{PORT}/\n", flush=True)
    return 0


def wait_for_answer(process: subprocess.Popen[bytes]) -> str | None:
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.2)
    return None


if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        prepare()
    else:
        sys.exit(run())
