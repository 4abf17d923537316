"""An emulated host with KVM, for machines whose own KVM runs no guest, or that have none.

QEMU without acceleration emulates a processor with virtualization, AMD's or aarch64's EL2, and a
Debian kernel inside it has KVM. virtme-ng boots it on the root file system of the machine itself,
read-only, so that the very same files are tested; another architecture has a user land of its own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import debian
from target import IS_FOREIGN, MACHINE, PORT_NAMES
from tests.framework import userland
from tests.framework.paths import ARTEFACTS, TOP

MEMORY_GIB = 6
INHERITED = ("KRUNCLIENT_LIBKRUN", "KRUNCLIENT_LIBKRUNFW")
UNEXPECTED_END = 255
MAX_HOSTS = 6  # one after the other
MAX_IN_VAIN = 2  # of them, one after the other, in which not one test came to its end

# QEMU's emulation of several processors is not free of races when a kernel patches its own code,
# as KVM does with each first and last VM: hosts with two have crashed, and one hung.
PROCESSORS = "1"


@dataclass(frozen=True)
class Emulation:
    """What virtme-ng is to be told of hosts of one architecture."""

    modules: tuple[str, ...]
    kernel_options: str
    arguments: tuple[str, ...] = ()


# A kernel that knows of fast byte-wise string instructions clears its pages by them. QEMU emulates
# these byte by byte, and slowly where the page has held code, as a former guest's memory has: a
# boot takes twice as long.
# With periodic ticks a timer interrupt that the emulation loses is followed by another; a kernel
# that sets its timer for the next event alone has then been seen to sleep for ever.
TICKS = "nohz=off highres=off"
EMULATIONS = {
    "x86_64": Emulation(("kvm_amd", "overlay"), f"clearcpuid=erms {TICKS}"),
    "aarch64": Emulation(
        ("overlay",),
        TICKS,
        (
            "--arch=arm64",
            "--qemu-opts=-M virt,virtualization=on,gic-version=3 -cpu neoverse-n1",
        ),
    ),
}
# A host has file systems of its own at /tmp, /var/tmp and more, and virtme-ng takes no path with a
# space: so this checkout and the host's own directory are handed over by names without, and then
# mounted where they are here; virtme-ng and the kernel are found by such names as well.
SHARED = "/run/krunclient"
HARD_OPEN_FILES = 524288  # what systemd gives; a bare kernel gives 4096
# A host says that it lives as often as this, whatever its tests do, and hangs if it is silent.
HEARTBEAT_SECONDS = 5
SILENT_SECONDS = 180


def how_many() -> int:
    """How many hosts this machine can emulate side by side without slowing each other: 1 or 2."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available_kib,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    enough = available_kib > 2 * MEMORY_GIB * 2**20
    return 2 if enough and len(os.sched_getaffinity(0)) > 1 else 1


def kernel() -> Path:
    """That of the Debian suite that HOST_KERNEL names, else one of 6.12 or later, whose Landlock
    has network rules.
    """
    newer = "bookworm-backports" if debian.codename() == "bookworm" else debian.codename()
    suite = os.environ.get("HOST_KERNEL", newer)
    port = PORT_NAMES[MACHINE]
    meta, one = f"linux-image-{port}", rf"linux-image-\S+-{port}"
    package = debian.dependency(meta, one, suite, MACHINE)
    directory = debian.unpack(package, suite, MACHINE)
    # From 7.2 on, packages of their own hold the image and the modules.
    parts = debian.dependencies(package, r"linux-(?:modules|binary)-\S+", suite, MACHINE)
    if parts:
        directory = _merged([debian.unpack(part, suite, MACHINE) for part in parts])
    (image,) = (directory / "boot").glob("vmlinuz-*")
    return image


def _merged(packages: Sequence[Path]) -> Path:
    """One directory with what packages of a kernel hold, its image where older ones have it."""
    target = packages[0].with_name(f"{packages[0].name}-and-others")
    if not target.is_dir():
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
        for package in packages:
            userland.link_tree(package, temporary)
        (image,) = temporary.glob("usr/lib/modules/*/vmlinuz")
        (temporary / "boot").mkdir(exist_ok=True)
        image.rename(temporary / "boot" / f"vmlinuz-{image.parent.name}")
        temporary.rename(target)
    return target


def run(commands: Sequence[Sequence[str]], timeout: float) -> int:
    """Run each command as root on an emulated host of its own, side by side.

    Returns the first status that is not 0; the output is shown as it comes. 255 means that a host
    itself ended early; its console is in build/artefacts.
    """
    debian.require(f"emulated-host-of-{MACHINE}" if IS_FOREIGN else "emulated-host")
    image = kernel()
    root = userland.prepare(MACHINE, image) if IS_FOREIGN else Path("/")
    # A host is in a session of its own, where no signal of a terminal's or of nox's ends it.
    interrupted = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: interrupted.set())
    hosts = [
        Host(image, root, command, ARTEFACTS / f"host-{number}", timeout, interrupted)
        for number, command in enumerate(commands, 1)
    ]
    with ThreadPoolExecutor(len(hosts)) as pool:
        statuses = list(pool.map(Host.run, hosts))
    return next((status for status in statuses if status), 0)


@dataclass(frozen=True)
class Host:
    """One emulated host for one command, in a directory that it shares with this one."""

    image: Path
    root: Path
    command: Sequence[str]
    directory: Path
    timeout: float
    interrupted: threading.Event

    @property
    def heartbeat(self) -> Path:
        return self.directory / "heartbeat"

    @property
    def outcomes(self) -> Path:
        return self.directory / "outcomes"

    @property
    def _modules(self) -> Path:
        version = self.image.name.removeprefix("vmlinuz-")
        (found,) = self.image.parent.parent.glob(f"**/lib/modules/{version}")
        return found

    def run(self) -> int:
        """A host that crashed or hung says nothing about the test that was running: then another
        one goes on with that test. If two in a row get no further, that is the end.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.outcomes.write_bytes(b"")
        in_vain = 0
        for number in range(1, MAX_HOSTS + 1):
            known = self.outcomes.stat().st_size
            status = self._run_once()
            if status != UNEXPECTED_END or self.interrupted.is_set():
                break
            console = self.directory / "console.log"
            kept = console.rename(self.directory / f"console-{number}.log")
            print(f"\nthe emulated host ended early (its console: {kept})", flush=True)
            in_vain = in_vain + 1 if self.outcomes.stat().st_size == known else 0
            if in_vain == MAX_IN_VAIN:
                break
        return status

    def _run_once(self) -> int:
        status, output = self.directory / "status", self.directory / "output.log"
        status.unlink(missing_ok=True)
        output.write_bytes(b"")
        beat, modules = shlex.quote(str(self.heartbeat)), shlex.quote(str(self._modules))
        plugin = ["-p", "tests.framework.outcomes", f"--outcomes={self.outcomes}"]
        emulation = EMULATIONS[MACHINE]
        # Its own Python runs the pure ones of this environment.
        packages = sysconfig.get_path("purelib")
        inherited = (
            {"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{packages}"}
            if IS_FOREIGN
            else {name: os.environ[name] for name in ("PATH", "PYTHONPATH")}
        )
        inherited |= {name: os.environ[name] for name in INHERITED if name in os.environ}
        script = "\n".join(
            [
                *_mount(f"{SHARED}/checkout", TOP),
                *_mount(f"{SHARED}/host", self.directory),
                f"(while date >{beat}; do sleep {HEARTBEAT_SECONDS}; done) &",
                *([] if IS_FOREIGN else [f"ln -sfn {modules} /lib/modules/"]),
                f"ulimit -Hn {HARD_OPEN_FILES}",
                f"modprobe -a {' '.join(emulation.modules)}",
                "chmod 666 /dev/kvm",
                f"cd {shlex.quote(str(TOP))}",
                "export HOME=/root LANG=C.UTF-8",
                f"export PYTEST_ADDOPTS={shlex.quote(shlex.join(plugin))}",
                *(f"export {name}={shlex.quote(value)}" for name, value in inherited.items()),
                f"{shlex.join(self.command)} >{shlex.quote(str(output))} 2>&1",
                f"echo $? >{shlex.quote(str(status))}",
            ]
        )
        # As a file, since a kernel's command line, which virtme-ng puts commands into, is short.
        (self.directory / "start.sh").write_text(f"{script}\n")
        with tempfile.TemporaryDirectory() as links:
            package = self.image.parent.parent
            targets = {
                "checkout": TOP,
                "host": self.directory,
                "linux": package,
                "root": self.root,
                "site-packages": Path(sysconfig.get_path("purelib")),
            }
            for name, target in targets.items():
                Path(links, name).symlink_to(target)
            return self._boot(Path(links), status, output)

    def _boot(self, links: Path, status: Path, output: Path) -> int:
        emulation = EMULATIONS[MACHINE]
        image = str(links / "linux/boot" / self.image.name)
        vng = ["vng", "--run", image, "--verbose", "--disable-kvm", "--force-9p"]
        vng += ["--append", emulation.kernel_options, *emulation.arguments]
        vng += ["--root", str(links / "root")] if IS_FOREIGN else []
        vng += ["--cpus", PROCESSORS, "--memory", f"{MEMORY_GIB}G"]
        vng += ["--rodir", f"{SHARED}/checkout={links}/checkout"]
        vng += ["--rwdir", f"{SHARED}/host={links}/host"]
        vng += ["--exec", f"sh {SHARED}/host/start.sh"]
        search = f"{Path(sys.executable).parent}:{debian.search_path()}"
        with (self.directory / "console.log").open("wb") as console:
            # virtme-ng wants pipes, and an end of input would end the host.
            process = subprocess.Popen(
                vng,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",  # which it hands on as well
                env={**os.environ, "PATH": search, "PYTHONPATH": str(links / "site-packages")},
                start_new_session=True,
            )
            copier = threading.Thread(target=_copy, args=(process, console), daemon=True)
            copier.start()
            try:
                self._follow(process, output)
            finally:
                # Also where virtme-ng has ended, and left its QEMU behind.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            copier.join(10)
        return int(status.read_text()) if status.is_file() else UNEXPECTED_END

    def _follow(self, process: subprocess.Popen[bytes], output: Path) -> None:
        deadline = time.monotonic() + self.timeout
        heard, heartbeat = time.monotonic(), 0
        with output.open("rb") as lines:
            incomplete = b""
            while True:
                ended = process.poll() is not None
                last = self.heartbeat.stat().st_mtime_ns if self.heartbeat.exists() else 0
                if last != heartbeat:
                    heard, heartbeat = time.monotonic(), last
                while chunk := lines.read(65536):
                    whole, newline, incomplete = (incomplete + chunk).rpartition(b"\n")
                    _show(whole + newline)
                if ended:
                    _show(incomplete)
                    return
                late = time.monotonic() > min(deadline, heard + SILENT_SECONDS)
                if late or self.interrupted.is_set():
                    why = "it was silent or too slow" if late else "interrupted"
                    print(f"\nthe emulated host was ended: {why}", flush=True)
                    return
                time.sleep(0.2)


def _mount(shared: str, path: Path) -> list[str]:
    """Commands that put a shared directory at a path, which is made where it is covered."""
    quoted = shlex.quote(str(path))
    return [f"mkdir -p {quoted}", f"mount --bind {shared} {quoted}"]


def _show(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


def _copy(process: subprocess.Popen[bytes], console: object) -> None:
    assert process.stdout is not None
    while chunk := os.read(process.stdout.fileno(), 65536):
        console.write(chunk)  # type: ignore[attr-defined]
        console.flush()  # type: ignore[attr-defined]
