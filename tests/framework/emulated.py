"""An emulated host with KVM, for machines whose own KVM runs no guest, or that have none.

QEMU without acceleration emulates a processor with AMD's virtualization; a Debian kernel inside
it loads kvm_amd. virtme-ng boots it on the root file system of the machine itself, read-only, so
that the very same files are tested.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.framework.paths import ARTEFACTS, TOP

import debian  # isort: skip

MEMORY = "6G"
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "modprobe": "kmod",
    "busybox": "busybox-static",
    "file": "file",
    "ip": "iproute2",
}
UNEXPECTED_END = 255
HOSTS = 2

# QEMU's emulation of several processors is not free of races when a kernel patches its own code,
# as KVM does with each first and last VM: hosts with two have crashed, and one hung.
PROCESSORS = "1"
# No test is silent for longer, unless its host hangs.
SILENT_SECONDS = 300


def kernel() -> Path:
    """A kernel of 6.12 or later, whose Landlock has network rules."""
    suite = "bookworm-backports" if debian.codename() == "bookworm" else debian.codename()
    package = debian.dependency("linux-image-amd64", r"linux-image-\S+-amd64", suite)
    (image,) = (debian.unpack(package, suite) / "boot").glob("vmlinuz-*")
    return image


def run(command: list[str], timeout: float) -> int:
    """Run a command as root on an emulated host and return its status, its output shown as it
    comes. 255 means that the host itself ended early; its console is in build/artefacts.

    A host that crashed or hung says nothing about the tests: then another one runs the command.
    """
    debian.require(PROGRAMS)
    image = kernel()
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, HOSTS + 1):
        status = _run_once(image, command, timeout)
        if status != UNEXPECTED_END:
            break
        kept = (ARTEFACTS / "console.log").rename(ARTEFACTS / f"console-{attempt}.log")
        print(f"\nthe emulated host ended early (its console: {kept})", flush=True)
    return status


def _run_once(image: Path, command: list[str], timeout: float) -> int:
    status, output = ARTEFACTS / "status", ARTEFACTS / "output.log"
    status.unlink(missing_ok=True)
    output.write_bytes(b"")
    script = "\n".join(
        [
            "modprobe -a kvm_amd overlay",
            "chmod 666 /dev/kvm",
            f"cd {shlex.quote(str(TOP))}",
            f"export HOME=/root LANG=C.UTF-8 PATH={shlex.quote(os.environ['PATH'])}",
            f"{shlex.join(command)} >{shlex.quote(str(output))} 2>&1",
            f"echo $? >{shlex.quote(str(status))}",
        ]
    )
    vng = ["vng", "--run", str(image), "--verbose", "--disable-kvm", "--force-9p"]
    vng += ["--cpus", PROCESSORS, "--memory", MEMORY, "--rwdir", str(ARTEFACTS), "--exec", script]
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    with (ARTEFACTS / "console.log").open("wb") as console:
        # virtme-ng wants pipes, and an end of input would end the host.
        process = subprocess.Popen(
            vng,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": search},
            start_new_session=True,
        )
        copier = threading.Thread(target=_copy, args=(process, console), daemon=True)
        copier.start()
        _follow(process, output, timeout)
        copier.join(10)
    return int(status.read_text()) if status.is_file() else UNEXPECTED_END


def _copy(process: subprocess.Popen[bytes], console: object) -> None:
    assert process.stdout is not None
    while chunk := os.read(process.stdout.fileno(), 65536):
        console.write(chunk)  # type: ignore[attr-defined]
        console.flush()  # type: ignore[attr-defined]


def _follow(process: subprocess.Popen[bytes], output: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    heard = time.monotonic()
    with output.open("rb") as lines:
        while True:
            ended = process.poll() is not None
            while chunk := lines.read(65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                heard = time.monotonic()
            if ended:
                return
            if time.monotonic() > min(deadline, heard + SILENT_SECONDS):
                os.killpg(process.pid, 9)
                process.wait()
                print("\nthe emulated host was ended: it was silent or took too long", flush=True)
                return
            time.sleep(0.2)
