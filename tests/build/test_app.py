"""An app directory from a program or an OCI image holds all that it needs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.framework import images
from tests.framework.guests import BUSYBOX
from tests.framework.paths import SCRIPTS

TALKS = '#!/bin/sh\necho "$@"; busybox pwd; busybox env | busybox sort\n'
Made = Callable[..., subprocess.CompletedProcess[str]]
NewImage = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "an app"


@pytest.fixture
def make(directory: Path, tmp_path: Path) -> Made:
    def run(source: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"{SCRIPTS}/app.py", str(source), str(directory), *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, source: str, *options: str) -> Path:
        command = ["gcc", "-x", "c", "-", "-x", "none", "-o", str(tmp_path / name), *options]
        subprocess.run(command, input=source, text=True, check=True)
        return tmp_path / name

    return run


@pytest.fixture
def new_image(tmp_path: Path) -> NewImage:
    """An image with a shell and a program that says what it was started with."""

    def run(
        *, program: str = "bin/talks", links: dict[str, str] | None = None, **config: Any
    ) -> Path:
        layer = tmp_path / "layer"
        (layer / "usr/bin").mkdir(parents=True)
        for name, target in {"bin": "usr/bin", **(links or {})}.items():
            (layer / name).symlink_to(target)
        shutil.copy2(BUSYBOX, layer / "usr/bin/busybox")
        (layer / "usr/bin/sh").symlink_to("busybox")
        (layer / "etc").mkdir()
        (layer / "etc/passwd").write_text("root:x:0:0::/home:/bin/sh\n")
        (layer / "usr" / program).write_text(TALKS)
        (layer / "usr" / program).chmod(0o755)
        return images.make(tmp_path / "image", layer, **config)

    return run


def said(root: Path, *arguments: str, variables: Sequence[str] = ()) -> list[str]:
    """What /bin/app says, started there as root."""
    command = ["--map-root-user", f"--root={root}", "/bin/app", *arguments]
    given = dict(variable.split("=", 1) for variable in variables)
    unshare = shutil.which("unshare")
    assert unshare is not None
    result = subprocess.run(
        [unshare, *command], capture_output=True, text=True, check=True, env=given
    )
    return [line for line in result.stdout.splitlines() if not line.startswith(("SHLVL=", "PWD="))]


def test_a_static_program_becomes_bin_app_and_a_second_run_replaces_it(
    compiled: Callable[..., Path], make: Made, directory: Path
) -> None:
    first = compiled("first", "int main(void) { return 3; }", "-static")
    assert make(first).returncode == 0
    assert subprocess.run([directory / "bin/app"]).returncode == 3
    assert (directory / "etc/ssl/certs/ca-certificates.crt").exists()
    (directory / "etc/hosts").write_text("own\n")
    second = compiled("second", "int main(void) { return 4; }", "-static")
    result = make(second)
    assert "kept etc/hosts" in result.stdout
    assert subprocess.run([directory / "bin/app"]).returncode == 4
    assert (directory / "etc/hosts").read_text() == "own\n"


def test_an_app_that_is_not_from_here_is_left_and_told(
    compiled: Callable[..., Path], make: Made, directory: Path
) -> None:
    (directory / "bin").mkdir(parents=True)
    (directory / "bin/app").write_text("own\n")
    result = make(compiled("program", "int main(void) { return 3; }", "-static"))
    assert result.returncode == 1
    assert result.stderr == f"{directory}/bin/app is not from here, and was left: remove it first\n"
    assert (directory / "bin/app").read_text() == "own\n"


def test_a_dynamic_program_runs_on_nothing_but_what_came_with_it(
    compiled: Callable[..., Path], make: Made, directory: Path, tmp_path: Path
) -> None:
    source = "int three(void) { return 3; }"
    library = compiled("libthree.so", source, "-shared", "-fPIC", "-Wl,-soname,libthree.so.1")
    library.rename(tmp_path / "libthree.so.1")
    (tmp_path / "libthree.so").symlink_to("libthree.so.1")
    program = compiled(
        "program",
        "#include <math.h>\nint three(void); int main(int c) { return three() + !cos(c); }",
        *(f"-L{tmp_path}", "-lthree", "-lm", f"-Wl,-rpath,{tmp_path}"),
    )
    result = make(program)
    assert result.returncode == 0, result
    command = ["unshare", "--map-root-user", f"--root={directory}", "/bin/app"]
    assert subprocess.run(command).returncode == 3
    (tmp_path / "libthree.so.1").unlink()
    result = make(program)
    assert result.returncode == 1
    assert result.stderr == (
        f"{program} needs libthree.so.1, not found: install it, or LD_LIBRARY_PATH\n"
    )


def test_a_script_is_refused_with_what_to_do(make: Made, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    result = make(tmp_path / "script")
    assert result.returncode == 1
    assert "neither a program for x86_64 nor an OCI image" in result.stderr
    assert not (directory / "bin/app").exists()
    result = make(tmp_path / "missing")
    assert (result.returncode, result.stderr) == (
        1,
        f"{tmp_path / 'missing'}: No such file or directory\n",
    )


@pytest.mark.parametrize("is_archive", [False, True], ids=["directory", "archive"])
def test_an_images_entrypoint_command_environment_and_directory_are_taken_over(
    new_image: NewImage, make: Made, directory: Path, is_archive: bool
) -> None:
    layout = new_image(
        **{
            "config.entrypoint": ["talks", 'a "b"\\'],
            "config.cmd": ["$(command)", "ü"],
            "config.env": ["FOO=a b", "PATH=/sbin:/bin", "HOST=image"],
            "config.workingdir": "/srv/made by us",
            "config.exposedports": "8000/tcp",
        }
    )
    result = make(images.archive(layout) if is_archive else layout)
    assert result.returncode == 0, result
    assert result.stdout.splitlines()[1] == f"krunclient --guest-port 8000 '{directory}' 8080"
    variables = ["FOO=a b", "HOME=/home", "HOST=image", "PATH=/sbin:/bin"]
    assert said(directory) == ['a "b"\\ $(command) ü', "/srv/made by us", *variables]
    given = said(directory, "x", "y z", variables=["HOST=given", "HOME=/h", "PATH=/p", "NEW=1"])
    variables[2:3] = ["HOST=given", "NEW=1"]
    assert given == ['a "b"\\ x y z', "/srv/made by us", *variables]


def test_a_command_without_an_entrypoint_is_the_program(
    new_image: NewImage, make: Made, directory: Path
) -> None:
    result = make(new_image(**{"config.cmd": ["/bin/talks", "one"]}))
    assert result.returncode == 0, result
    assert said(directory)[:2] == ["one", "/"]


def test_links_of_an_image_lead_nowhere_but_into_it(
    new_image: NewImage, make: Made, directory: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    links = {"bin": "/usr/bin", "out": str(outside), "up": "../../.."}
    config = {"config.cmd": "/bin/talks", "config.workingdir": f"/up{outside}/made"}
    result = make(new_image(links=links, **config))
    assert result.returncode == 0, result
    assert list(outside.iterdir()) == []
    assert (directory / "usr/bin/app").is_file()
    assert (directory / str(outside).lstrip("/") / "made").is_dir()


def test_a_program_that_is_bin_app_itself_goes_aside(
    new_image: NewImage, make: Made, directory: Path
) -> None:
    config = {"config.entrypoint": "/bin/app", "config.env": "FOO=image", "config.cmd": "one"}
    result = make(new_image(program="bin/app", **config))
    assert result.returncode == 0, result
    assert said(directory)[0] == "one"
    assert "FOO=image" in said(directory)


def test_of_several_images_the_one_for_this_machine_or_with_the_tag_is_taken(
    new_image: NewImage, make: Made, directory: Path
) -> None:
    layout = new_image(**{"config.cmd": ["talks", "ours"], "config.env": "PATH=/bin"})
    index = json.loads((layout / "index.json").read_text())
    (ours,) = index["manifests"]
    nested = json.dumps({"schemaVersion": 2, "manifests": [ours, foreign(layout, ours)]}).encode()
    outer = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": put(layout, nested),
        "size": len(nested),
    }
    (layout / "index.json").write_text(json.dumps({**index, "manifests": [outer]}))
    result = make(layout)
    assert result.returncode == 0, result
    assert said(directory)[0] == "ours"
    shutil.rmtree(directory)
    twice = [ours, {**ours, "annotations": {images.TAG_NAME: "other"}}]
    (layout / "index.json").write_text(json.dumps({**index, "manifests": twice}))
    result = make(layout)
    assert (result.returncode, result.stderr) == (
        1,
        "the image has several: choose one by --tag: latest, other\n",
    )
    assert not directory.exists()
    assert make(layout, "--tag=other").returncode == 0
    assert said(directory)[0] == "ours"


def foreign(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    """The same image for another architecture."""
    blob = json.loads((layout / "blobs/sha256" / descriptor["digest"][7:]).read_bytes())
    config = json.loads((layout / "blobs/sha256" / blob["config"]["digest"][7:]).read_bytes())
    encoded = json.dumps({**config, "architecture": "riscv64"}).encode()
    blob["config"] = {**blob["config"], "digest": put(layout, encoded), "size": len(encoded)}
    manifest = json.dumps(blob).encode()
    return {**descriptor, "digest": put(layout, manifest), "size": len(manifest)}


def put(layout: Path, blob: bytes) -> str:
    digest = hashlib.sha256(blob).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(blob)
    return f"sha256:{digest}"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({}, "the image says neither Entrypoint nor Cmd: it is no app"),
        ({"config.cmd": "nothing"}, "the image has no program nothing, which its configuration"),
        ({"config.cmd": "talks", "config.user": "who"}, "umoci can't unpack the image: "),
    ],
)
def test_what_is_no_app_is_told_and_nothing_is_left(
    new_image: NewImage, make: Made, directory: Path, config: dict[str, str], error: str
) -> None:
    before = set(directory.parent.iterdir())
    result = make(new_image(**config))
    assert result.returncode == 1
    assert result.stderr.startswith(error)
    assert set(directory.parent.iterdir()) - before == {
        directory.parent / "image",
        directory.parent / "layer",
    }


def test_what_is_no_image_is_told(make: Made, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    result = make(tmp_path / "nothing")
    assert (result.returncode, result.stderr) == (
        1,
        f"{tmp_path / 'nothing'} is no OCI image: it has no oci-layout\n",
    )
    (tmp_path / "nothing/manifest.json").write_text("[]")
    result = make(images.archive(tmp_path / "nothing"))
    assert result.returncode == 1
    assert "convert it by skopeo copy docker-archive:" in result.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.json", "[]"),
        ("index.json", "{"),
        ("index.json", '{"manifests": [{}]}'),
        ("index.json", '{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}'),
        ("index.json", '{"manifests": [{"digest": "sha256:00"}]}'),
        ("index.json", '{"manifests": 3}'),
    ],
)
def test_a_broken_image_is_told_in_a_line(
    new_image: NewImage, make: Made, directory: Path, name: str, text: str
) -> None:
    layout = new_image(**{"config.cmd": "talks"})
    (layout / name).write_text(text)
    result = make(layout)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result
    assert not directory.exists()


def test_a_directory_that_has_something_is_left_alone(
    new_image: NewImage, make: Made, directory: Path
) -> None:
    directory.mkdir()
    (directory / "mine").write_text("mine\n")
    result = make(new_image(**{"config.cmd": "talks"}))
    assert result.returncode == 1
    assert "is not empty" in result.stderr
    assert [path.name for path in directory.iterdir()] == ["mine"]
