"""An app directory from a program or an OCI image holds all that it needs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import image
from target import MACHINE
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
        *,
        program: str = "bin/talks",
        group: str = "",
        links: dict[str, str] | None = None,
        modes: dict[str, int] | None = None,
        **config: Any,
    ) -> Path:
        layer = tmp_path / "layer"
        (layer / "usr/bin").mkdir(parents=True)
        for name, target in {"bin": "usr/bin", **(links or {})}.items():
            (layer / name).symlink_to(target)
        shutil.copy2(BUSYBOX, layer / "usr/bin/busybox")
        (layer / "usr/bin/sh").symlink_to("busybox")
        (layer / "etc").mkdir()
        (layer / "etc/passwd").write_text("root:x:0:0::/home:/bin/sh\n")
        (layer / "etc/group").write_text(group)
        (layer / "usr" / program).write_text(TALKS)
        (layer / "usr" / program).chmod(0o755)
        for name, mode in (modes or {}).items():
            (layer / name).chmod(mode)
        image = images.make(tmp_path / "image", layer, **config)
        for name in modes or {}:
            (layer / name).chmod(0o755)
        return image

    return run


def said(
    root: Path, *arguments: str, variables: Sequence[str] = (), program: str = "/bin/app"
) -> list[str]:
    """What the program says, started there as root."""
    command = ["--map-root-user", f"--root={root}", program, *arguments]
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
    assert f"neither a whole program for {MACHINE} nor an OCI image" in result.stderr
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


@pytest.mark.parametrize("user", [0, 1000])
def test_whoever_unpacks_an_image_its_user_has_the_groups_that_it_says(
    new_image: NewImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    if user == 0 and os.geteuid() != 0:
        pytest.skip("only root unpacks as root")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    config = {"config.entrypoint": ["talks"], "config.user": "root"}
    source = new_image(group="root:x:0:\nextra:x:200:root\n", **config)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    configuration = image.choose(image.lay_out(source, temporary), None)
    image.unpack_layers(temporary)
    settings = image.read_settings(configuration, temporary / image.RUNTIME)
    assert (settings.user, settings.group, settings.groups) == (0, 0, [200])


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


# Others of the image's programs may start it, by whatever name.
@pytest.mark.parametrize("entrypoint", [["/bin/app"], ["sh", "-c", 'exec app "$0" "$@"']])
def test_an_image_keeps_its_own_bin_app_and_ours_goes_beside(
    new_image: NewImage, make: Made, directory: Path, entrypoint: list[str]
) -> None:
    image = new_image(
        program="bin/app",
        **{
            "config.entrypoint": entrypoint,
            "config.env": ["FOO=image", "PATH=/bin"],
            "config.cmd": "one",
        },
    )
    result = make(image)
    assert result.returncode == 0, result
    command = f"krunclient --exec /.krunclient/app '{directory}' 8080"
    assert result.stdout.splitlines()[-1] == command
    assert (directory / "bin/app").read_text() == TALKS
    told = said(directory, program="/.krunclient/app")
    assert told[0] == "one"
    assert "FOO=image" in told


def test_of_several_images_the_one_for_this_machine_or_with_the_tag_is_taken(
    new_image: NewImage, make: Made, directory: Path
) -> None:
    layout = new_image(**{"config.cmd": ["talks", "ours"], "config.env": "PATH=/bin"})
    index = json.loads((layout / "index.json").read_text())
    (ours,) = index["manifests"]
    # As docker writes it, with one that is not in the archive, and one for a kind of processor.
    absent = {**ours, "digest": f"sha256:{'0' * 64}"}
    kind = {
        **another(layout, ours),
        "platform": {"architecture": "amd64", "os": "linux", "variant": "v3"},
    }
    all_of_them = [ours, foreign(layout, ours), absent, kind]
    nested = json.dumps({"schemaVersion": 2, "manifests": all_of_them}).encode()
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
    twice = [ours, {**another(layout, ours), "annotations": {images.TAG_NAME: "other"}}]
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


def another(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    """The same image by another digest."""
    manifest = (layout / "blobs/sha256" / descriptor["digest"][7:]).read_bytes() + b"\n"
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
    archive = images.archive(tmp_path / "nothing")
    archive.write_bytes(archive.read_bytes()[:700])
    result = make(archive)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result


def test_a_program_that_could_not_run_is_refused(
    compiled: Callable[..., Path], make: Made, directory: Path, tmp_path: Path
) -> None:
    def error(program: Path) -> str:
        result = make(program)
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result
        assert not directory.exists()
        return result.stderr

    program = compiled("program", "int main(void) { return 3; }", "-static")
    (tmp_path / "cut").write_bytes(program.read_bytes()[:100])
    (tmp_path / "cut").chmod(0o755)
    assert "neither a whole program" in error(tmp_path / "cut")
    assert "neither a whole program" in error(compiled("part.o", "int x;", "-c"))
    other = compiled("other", "int main(void) { return 3; }", "-Wl,--dynamic-linker,/tmp/own")
    assert "names /tmp/own as its loader, which is none of /lib64/ld-linux-" in error(other)
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in error(tmp_path / "pipe")
    program.chmod(0o644)
    assert "is not executable: chmod +x it" in error(program)


def test_a_library_of_any_name_comes_along_and_one_that_was_there_is_told(
    compiled: Callable[..., Path], make: Made, directory: Path, tmp_path: Path
) -> None:
    name = "libwith space.so"
    compiled(name, "int three(void) { return 3; }", "-shared", "-fPIC", f"-Wl,-soname,{name}")
    source = "int three(void); int main(void) { return three(); }"
    rest = (f"-L{tmp_path}", f"-l:{name}", f"-Wl,-rpath,{tmp_path}")
    program = compiled("program", source, *rest)
    assert make(program).returncode == 0
    command = ["unshare", "--map-root-user", f"--root={directory}", "/bin/app"]
    assert subprocess.run(command).returncode == 3
    (directory / f"lib/{MACHINE}-linux-gnu/libc.so.6").write_text("own\n")
    result = make(program)
    assert result.returncode == 1
    assert "libc.so.6 is not from here, and was left: remove it first" in result.stderr


def test_a_library_is_looked_for_from_where_the_user_is(
    compiled: Callable[..., Path], make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/lib").mkdir(parents=True)
    library = compiled("three.so", "int three(void) { return 3; }", "-shared", "-fPIC")
    library.rename(tmp_path / "here/lib/three.so")
    source = "int three(void); int main(void) { return three(); }"
    program = compiled("program", source, f"-L{tmp_path}/here/lib", "-l:three.so")
    monkeypatch.setenv("LD_LIBRARY_PATH", "lib")
    assert make(program).returncode == 1
    monkeypatch.setenv("NOX_STARTED_IN", str(tmp_path / "here"))
    result = make(program)
    assert result.returncode == 0, result


def test_no_file_of_an_image_gives_rights_away_and_none_is_a_device(
    new_image: NewImage, make: Made, directory: Path, tmp_path: Path
) -> None:
    layout = new_image(
        modes={"usr/bin/talks": 0o6755, "usr/bin": 0o555, "usr": 0o555},
        **{"config.cmd": "/bin/talks"},
    )
    directory.mkdir(mode=0o700)
    result = make(layout)
    assert result.returncode == 0, result
    assert (directory / "usr/bin/talks").stat().st_mode & 0o7777 == 0o755
    assert (directory / "usr").stat().st_mode & 0o7777 == 0o555
    assert directory.stat().st_mode & 0o7777 == 0o700
    assert said(directory)[1] == "/"


def test_only_tcp_ports_are_the_guests(new_image: NewImage, make: Made) -> None:
    ports = ["53/udp", "8000-8010/tcp"]
    result = make(new_image(**{"config.cmd": "/bin/talks", "config.exposedports": ports}))
    assert "krunclient --guest-port 8000 " in result.stdout, result


def test_an_images_words_do_nothing_to_a_terminal(new_image: NewImage, make: Made) -> None:
    result = make(new_image(**{"config.cmd": ["/bin/talks", "\x1b]0;x\x07\nkrunclient evil"]}))
    assert result.returncode == 0, result
    assert len(result.stdout.splitlines()) == 2
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.json", "[" * 200000),
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
