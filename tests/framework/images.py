"""OCI images for tests, made by umoci from directories."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import debian

TAG, TAG_NAME = "latest", "org.opencontainers.image.ref.name"


def make(layout: Path, *layers: Path, **config: str | list[str]) -> Path:
    """An image directory. `config` has the fields of image-spec's config.md as umoci names them."""

    def umoci(command: str, *words: str | Path) -> None:
        program = debian.unpack("umoci") / "usr/bin/umoci"
        subprocess.run([program, command, *words], check=True, capture_output=True)

    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:{TAG}")
    for layer in layers:
        umoci("insert", "--rootless", "--image", f"{layout}:{TAG}", layer, "/")
    options = [
        f"--{name}={value}"
        for name, values in config.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    umoci("config", "--image", f"{layout}:{TAG}", *options)
    return layout


def archive(layout: Path) -> Path:
    """The image as one file beside its directory."""
    path = layout.with_suffix(".tar")
    with tarfile.open(path, "w") as file:
        for member in sorted(layout.rglob("*")):
            file.add(member, member.relative_to(layout), recursive=False)
    return path
