"""Debian packages for builds and tests: installed where that is needed, else only unpacked.

Run with the names of purposes, as `nox -s packages` does, it installs what is missing for these.

Packages are fetched from the mirror that the machine's own apt sources name, with apt's state in
a directory of ours, so that no privileges are needed and nothing of the machine changes.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from target import PORT_NAMES, TOP

DOWNLOADS = TOP / "build/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

HERE = platform.machine()
QEMU = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
# What builds and tests need of the machine, by purpose: a program or a file, and its package.
NEEDED = {
    "compiler": {"gcc": "gcc", "ld": "binutils", "/usr/include/stdio.h": "libc6-dev"},
    "languages": {"go": "golang-go", "rustc": "rustc"},
    "counts": {"strace": "strace", "valgrind": "valgrind"},
    "managers": {"systemd-analyze": "systemd"},
    "emulated-host": {
        f"qemu-system-{HERE}": QEMU[HERE],
        "modprobe": "kmod",
        "busybox": "busybox-static",
        "file": "file",
        "ip": "iproute2",
    },
    "compiler-for-aarch64": {
        "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
        "/usr/aarch64-linux-gnu/include/stdio.h": "libc6-dev-arm64-cross",
    },
    "emulated-host-of-aarch64": {
        "qemu-system-aarch64": QEMU["aarch64"],
        "depmod": "kmod",
        "file": "file",
    },
}


def unpack(package: str, suite: str | None = None, machine: str = HERE) -> Path:
    """Fetch a package and return the directory that it is unpacked in.

    `suite` is the machine's own where none is named, `machine` as uname(2) names it.
    """
    suite = suite or codename()
    directory = DOWNLOADS / machine / suite / package
    if not directory.is_dir():
        config = _apt_config(suite, machine)
        archives = config.parent / "archives"
        archives.mkdir(exist_ok=True)
        for old in archives.glob(f"{package}_*.deb"):
            old.unlink()
        _apt(config, "download", package, cwd=archives)
        temporary = directory.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        (archive,) = archives.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, temporary], check=True)
        temporary.rename(directory)
    return directory


def unpack_all(packages: Sequence[str], directory: Path, machine: str) -> None:
    """Unpack packages of the machine's own suite into a directory, with all that they depend on.

    No script of theirs is run, so they may be for another architecture.
    """
    config = _apt_config(codename(), machine)
    with tempfile.TemporaryDirectory(dir=config.parent) as archives:
        Path(archives, "partial").mkdir()
        # As if nothing were installed, so that the dependencies are fetched as well.
        nothing = Path(archives, "nothing-installed")
        nothing.touch()
        options = (f"Dir::State::Status={nothing}", f"Dir::Cache::Archives={archives}")
        words = [word for option in options for word in ("-o", option)]
        words += ["--yes", "--no-install-recommends", "--download-only"]
        try:
            _apt(config, "install", *words, *packages, cwd=config.parent)
        except subprocess.CalledProcessError:  # the lists may name what is there no more
            _apt(config, "update", cwd=config.parent)
            _apt(config, "install", *words, *packages, cwd=config.parent)
        for archive in sorted(Path(archives).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", archive, directory], check=True)


def dependency(package: str, pattern: str, suite: str, machine: str = HERE) -> str:
    """The name of the package that a meta-package depends on."""
    found = dependencies(package, pattern, suite, machine)
    if not found:
        sys.exit(f"{package} of {suite} depends on no package {pattern}")
    return found[0]


def dependencies(package: str, pattern: str, suite: str, machine: str) -> list[str]:
    """The names of the packages of this form that a package depends on."""
    listing = _apt_cache(_apt_config(suite, machine), "depends", package)
    return re.findall(rf"Depends: ({pattern})$", listing, re.MULTILINE)


def search_path() -> str:
    """PATH with the programs of administration, which a user's own does not have in Debian."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def require(*purposes: str) -> None:
    """Install what is missing for these, keys of NEEDED: as root, or by sudo where that is there.

    It is said beforehand. Ends with one line that names the packages where neither can be.
    """
    for purpose in set(purposes) - set(NEEDED):
        sys.exit(f"this machine can't have what {purpose} needs")
    path = search_path()
    missing = sorted(
        package
        for purpose in purposes
        for name, package in NEEDED[purpose].items()
        if not (Path(name).exists() if name.startswith("/") else shutil.which(name, path=path))
    )
    if not missing:
        return
    install = ["apt-get", "install", "--no-install-recommends", *missing]
    sudo = shutil.which("sudo")
    if os.geteuid() != 0 and sudo is None:
        sys.exit(f"please install, as root: {shlex.join(install)}")
    print(f"installing what {' and '.join(purposes)} needs: {shlex.join(install)}", flush=True)
    root = [] if os.geteuid() == 0 else ["sudo"]
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    for words in (["update"], install[1:]):
        if subprocess.run([*apt, *words], stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"please install, as root: {shlex.join(install)}")


def codename() -> str:
    return dict(
        line.strip().split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )["VERSION_CODENAME"]


def mirror() -> str:
    """The address in the machine's apt sources that has the machine's own suite."""
    suite = codename()
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for source in sources:
        if source.suffix not in (".list", ".sources") or not source.is_file():
            continue
        text = source.read_text()
        for stanza in text.split("\n\n"):
            address = re.search(r"^URIs:\s*(\S+)", stanza, re.M)
            if address and re.search(rf"^Suites:.*\b{suite}(\s|$)", stanza, re.M):
                return address[1]
        line = re.search(rf"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+{suite}\s", text, re.M)
        if line:
            return line[1]
    sys.exit(f"the apt sources of this machine have no {suite}: builds and tests need Debian")


def _apt_config(suite: str, machine: str) -> Path:
    """A configuration of apt's that knows one suite; its package list is read on first use."""
    state = DOWNLOADS / machine / suite
    config = state / "apt.conf"
    if not config.is_file():
        for directory in ("lists/partial", "cache/archives/partial"):
            (state / directory).mkdir(parents=True, exist_ok=True)
        (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
        temporary = state / "apt.conf.tmp"
        temporary.write_text(
            f'Dir::Etc::SourceList "{state}/sources.list";\n'
            'Dir::Etc::SourceParts "-";\n'
            f'Dir::State::Lists "{state}/lists";\n'
            f'Dir::Cache "{state}/cache";\n'
            'APT::Sandbox::User "";\n'
            f'APT::Architecture "{PORT_NAMES[machine]}";\n'
            f'APT::Architectures {{"{PORT_NAMES[machine]}";}};\n'
        )
        _apt(temporary, "update", cwd=state)
        temporary.rename(config)
    return config


def _apt(config: Path, *arguments: str, cwd: Path) -> None:
    subprocess.run(
        ["apt-get", "-qq", *arguments],
        check=True,
        cwd=cwd,
        env={**os.environ, "APT_CONFIG": str(config)},
    )


def _apt_cache(config: Path, *arguments: str) -> str:
    return subprocess.run(
        ["apt-cache", *arguments],
        check=True,
        env={**os.environ, "APT_CONFIG": str(config)},
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


if __name__ == "__main__":
    require(*sys.argv[1:])
