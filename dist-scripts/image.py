"""OCI images, as image-spec's image-layout.md and config.md have them: their files are unpacked by
umoci, and their configuration becomes /bin/app.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import debian
from build import compile_for_guest
from krunclient.bindings.arch import X86_64

TOP = Path(__file__).resolve().parent.parent
ENTRY = TOP / "dist-scripts/entry.c"
LAYOUT_FILES = re.compile(r"(?:\./)?(oci-layout|index\.json|blobs/\w+/[0-9a-f]+)")
DIGEST = re.compile(r"(\w+):([0-9a-f]+)")
INDEX_TYPES = ("image.index", "manifest.list")
TAG = "org.opencontainers.image.ref.name"
ARCHITECTURES = {X86_64.machine: "amd64"}  # as GOARCH names them
MAX_LINKS = 40  # the kernel's, path_resolution(7)
GUEST_PORT = 80


@dataclass(frozen=True)
class Settings:
    """What an image's program is started with. `entrypoint` begins with the program's name."""

    entrypoint: Sequence[str]
    command: Sequence[str]
    environment: Sequence[str]
    directory: str
    user: int
    group: int
    groups: Sequence[int]
    ports: Sequence[str]


def is_image(source: Path) -> bool:
    """A directory, or an archive of any compression that tarfile knows."""
    if source.is_dir():
        return True
    return source.is_file() and tarfile.is_tarfile(source)


def unpack(source: Path, directory: Path, tag: str | None) -> str:
    """Make the app directory. Returns what was made, and how to start it."""
    if directory.exists() and any(directory.iterdir()):
        sys.exit(f"{directory} is not empty: an image's files go into a directory of their own")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        layout = lay_out(source, temporary)
        try:
            chosen, configuration = choose(layout, tag)
        except (AttributeError, KeyError, TypeError) as error:
            sys.exit(f"{source} is no OCI image: its index or a manifest is none: {error!r}")
        index = {"schemaVersion": 2, "manifests": [{**chosen, "annotations": {TAG: "app"}}]}
        (layout / "index.json").unlink()
        (layout / "index.json").write_text(json.dumps(index))
        root = _umoci(layout, temporary / "bundle")
        settings = read_settings(configuration, temporary / "bundle/config.json")
        program = add_entry(root, settings, temporary)
        directory.mkdir(exist_ok=True)
        root.chmod(0o755)
        root.rename(directory)
    finally:
        _remove(temporary)
    words = shlex.join([program, *settings.entrypoint[1:], *settings.command])
    is_other = settings.ports and str(GUEST_PORT) not in settings.ports
    ports = ["--guest-port", settings.ports[0]] if is_other else []
    return f"{directory}: {words}\n{shlex.join(['krunclient', *ports, str(directory), '8080'])}"


def lay_out(source: Path, temporary: Path) -> Path:
    """A layout that may be changed: its blobs are the image's own."""
    layout = temporary / "layout"
    layout.mkdir()
    if source.is_dir():
        for name in ("oci-layout", "index.json", "blobs"):
            if not (source / name).exists():
                sys.exit(f"{source} is no OCI image: it has no {name}")
            (layout / name).symlink_to((source / name).resolve())
        return layout
    with tarfile.open(source) as archive:
        for member in archive:
            found = LAYOUT_FILES.fullmatch(member.name)
            content = archive.extractfile(member) if found and member.isfile() else None
            if found and content:
                target = layout / found[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    if not (layout / "oci-layout").exists():
        remedy = f"convert it by skopeo copy docker-archive:{source} oci-archive:NEW"
        sys.exit(f"{source} is no OCI image: it has no oci-layout; {remedy}")
    return layout


def choose(layout: Path, tag: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The descriptor and the configuration of the image for this architecture that has the tag."""
    found = []
    for descriptor in _manifests(layout, _read(layout / "index.json")):
        name = descriptor.get("annotations", {}).get(TAG, "")
        if tag is not None and tag != name:
            continue
        configuration = _blob(layout, _blob(layout, descriptor)["config"])
        made_for = configuration.get("os", "linux"), configuration.get("architecture")
        if made_for == ("linux", ARCHITECTURES[X86_64.machine]):
            found.append((descriptor, configuration, name))
    if not found:
        named = f" with the tag {tag}" if tag else ""
        sys.exit(f"the image has none for linux on {X86_64.machine}{named}")
    if len(found) > 1:
        names = ", ".join(name or "one without" for _, _, name in found)
        sys.exit(f"the image has several: choose one by --tag: {names}")
    ((descriptor, configuration, _),) = found
    return descriptor, configuration


def read_settings(configuration: dict[str, Any], runtime: Path) -> Settings:
    """From the image's configuration, and from what umoci made of it: it has looked the user up in
    the image's own files.
    """
    config, process = configuration.get("config", {}), _read(runtime)["process"]
    entrypoint, command = config.get("Entrypoint") or [], config.get("Cmd") or []
    if not entrypoint:
        entrypoint, command = command[:1], command[1:]
    if not entrypoint:
        sys.exit("the image says neither Entrypoint nor Cmd: it is no app")
    return Settings(
        entrypoint=entrypoint,
        command=command,
        environment=[one for one in process["env"] if not one.startswith("TERM=")],
        directory=process["cwd"],
        user=process["user"]["uid"],
        group=process["user"]["gid"],
        groups=process["user"].get("additionalGids", []),
        ports=[port.partition("/")[0] for port in config.get("ExposedPorts") or {}],
    )


def add_entry(root: Path, settings: Settings, temporary: Path) -> str:
    """Write /bin/app. A program that the image has there goes aside. Returns the program's path."""
    program, path = _look_up(root, settings)
    inside(root, settings.directory).mkdir(parents=True, exist_ok=True)
    entry = inside(root, "/bin") / "app"
    entry.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(entry):
        aside = entry.with_name("app.image")
        if path == entry:
            program = "/bin/app.image"
        entry.rename(aside)
    (temporary / "settings.h").write_bytes(header(settings, program))
    compile_for_guest(ENTRY, temporary / "entry", X86_64.machine, f"-I{temporary}")
    shutil.move(temporary / "entry", entry)
    return program


def header(settings: Settings, program: str) -> bytes:
    """settings.h of entry.c."""

    def words(name: str, values: Sequence[str]) -> str:
        return f"static char *const {name}[] = {{ {', '.join([*map(_quoted, values), '0'])} }};\n"

    lines = [
        f"static const u32 user = {settings.user}, group = {settings.group};\n",
        f"static const u32 groups[] = {{ {', '.join(map(str, [*settings.groups, 0]))} }};\n",
        f"static const char program[] = {_quoted(program)};\n",
        f"static const char directory[] = {_quoted(settings.directory)};\n",
        words("entrypoint", settings.entrypoint),
        words("command", settings.command),
        words("environment", settings.environment),
    ]
    return "".join(lines).encode()


def inside(root: Path, path: str) -> Path:
    """Where a path leads for who has root as its first directory, whatever its links say."""
    parts, at, links = path.split("/")[::-1], root, 0
    while parts:
        part = parts.pop()
        if part == "..":
            at = at if at == root else at.parent
        elif (at / part).is_symlink():
            links += 1
            if links > MAX_LINKS:
                sys.exit(f"{path} of the image is a link that leads nowhere")
            target = (at / part).readlink()
            at = root if target.is_absolute() else at
            parts += str(target).split("/")[::-1]
        else:
            at /= part  # which "" and "." do not change
    return at


def _look_up(root: Path, settings: Settings) -> tuple[str, Path]:
    """The program by its path in the guest and by its path here, found as a shell finds it."""
    name = settings.entrypoint[0]
    variables = dict(one.partition("=")[::2] for one in settings.environment)
    if "/" in name:
        places = [str(PurePosixPath(settings.directory, name))]
    else:
        places = [f"{place or '.'}/{name}" for place in variables.get("PATH", "").split(":")]
    for place in places:
        path = inside(root, place)
        if path.is_file() and path.stat().st_mode & 0o111:
            return place, path
    sys.exit(f"the image has no program {name}, which its configuration names")


def _manifests(layout: Path, index: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The descriptors of its images, those of indexes in it included. A tag is on the outer one."""
    for descriptor in index["manifests"]:
        if any(kind in descriptor.get("mediaType", "") for kind in INDEX_TYPES):
            for inner in _manifests(layout, _blob(layout, descriptor)):
                outer = descriptor.get("annotations", {})
                yield {**inner, "annotations": {**inner.get("annotations", {}), **outer}}
        else:
            yield descriptor


def _blob(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    digest = DIGEST.fullmatch(descriptor.get("digest", ""))
    if digest is None:
        sys.exit("the image's index or manifest has no digest where it needs one")
    return _read(layout / "blobs" / digest[1] / digest[2])


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        sys.exit(f"the image's {path.name} is no JSON: {error}")
    return value if isinstance(value, dict) else {}


def _umoci(layout: Path, bundle: Path) -> Path:
    """The files of the image. Only root can give them the owners that the image names."""
    umoci = debian.unpack("umoci") / "usr/bin/umoci"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    command: list[str | Path] = [umoci, "unpack", *rootless, "--image", f"{layout}:app", bundle]
    unpacked = subprocess.run(command, capture_output=True, text=True)
    if unpacked.returncode:
        sys.exit(f"umoci can't unpack the image: {unpacked.stderr.strip()}")
    return bundle / "rootfs"


def _remove(directory: Path) -> None:
    """An image has directories that only root may write."""

    def allow(_: object, path: str, __: object) -> None:
        Path(path).parent.chmod(0o700)
        Path(path).unlink()

    shutil.rmtree(directory, onerror=allow)


def _quoted(text: str) -> str:
    """A string of C, of any bytes: three digits each."""
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode(errors="surrogatepass")) + '"'
