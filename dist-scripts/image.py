"""OCI images, as image-spec's image-layout.md and config.md have them: their files are unpacked by
umoci, and their configuration becomes a program that does what it says.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import debian
from build import compile_for_guest
from target import MACHINE, PORT_NAMES, TOP

ENTRY = TOP / "dist-scripts/entry.c"
# Where the program goes: an image that has the first one itself keeps it.
BIN_APP, ASIDE = "/bin/app", "/.krunclient/app"
LAYOUT_FILES = re.compile(r"(?:\./)?(oci-layout|index\.json|blobs/\w+/[0-9a-f]+)")
DIGEST = re.compile(r"(\w+):([0-9a-f]+)")
PORTS = re.compile(r"(\d+)(?:-\d+)?(?:/tcp)?")  # the first of a range; a guest has no UDP
INDEX_TYPES = ("image.index", "manifest.list")
MAX_INDEXES = 8  # one in the other
# Names of an image in an index: OCI's, and containerd's, as `docker save` writes it.
TAG = "org.opencontainers.image.ref.name"
TAGS = (TAG, "io.containerd.image.name")
MAX_LINKS = 40  # the kernel's, path_resolution(7)
MAX_STRING = 128 * 1024  # MAX_ARG_STRLEN, of an argument or a variable
GUEST_PORT = 80
RUNTIME = "runtime.json"  # as runtime-spec's config.md has it
BROKEN = (
    *(AttributeError, KeyError, TypeError, ValueError, RecursionError),
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
)


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
    ports: Sequence[int]


def is_image(source: Path) -> bool:
    """A directory, or an archive of any compression that tarfile knows."""
    return source.is_dir() or (source.is_file() and tarfile.is_tarfile(source))


def unpack(source: Path, directory: Path, tag: str | None) -> str:
    """Make the app directory. Returns what was made, and how to start it."""
    if directory.exists() and any(directory.iterdir()):
        sys.exit(f"{directory} is not empty: an image's files go into a directory of their own")
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    # In it, so that what is in there can be moved, whatever DIRECTORY is a link to or a mount of.
    temporary = Path(tempfile.mkdtemp(prefix=".krunclient-", dir=directory))
    complete = False
    try:
        try:
            layout = lay_out(source, temporary)
            configuration = choose(layout, tag)
            root = unpack_layers(temporary)
            settings = read_settings(configuration, temporary / RUNTIME)
        except BROKEN as error:
            why = str(error).splitlines() or [""]
            sys.exit(f"{source} is no OCI image that can be read: {type(error).__name__}: {why[0]}")
        _make_harmless(root)
        entry, program = add_entry(root, settings, temporary)
        with _Writable(root):
            for path in root.iterdir():
                _move(path, directory / path.name)
        complete = True
    finally:
        _remove(temporary)
        for path in [] if complete else made:
            path.rmdir()
    is_other = settings.ports and GUEST_PORT not in settings.ports
    options = ["--guest-port", str(settings.ports[0])] if is_other else []
    options += [] if entry == BIN_APP else ["--exec", entry]
    started = [program, *settings.entrypoint[1:], *settings.command]
    command = ["krunclient", *options, str(directory), "8080"]
    return f"{directory}: {_printable(shlex.join(started))}\n{_printable(shlex.join(command))}"


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
            content = archive.extractfile(member) if found else None
            if found and content:
                target = layout / found[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    for name in ("oci-layout", "index.json"):
        if not (layout / name).exists():
            remedy = f"convert it by skopeo copy docker-archive:{source} oci-archive:NEW"
            sys.exit(f"{source} is no OCI image: it has no {name}; {remedy}")
    return layout


def choose(layout: Path, tag: str | None) -> dict[str, Any]:
    """Leave the image for this machine in the layout's index, with the tag if one is asked for.

    Returns its configuration.
    """
    found: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {}
    for descriptor in _manifests(layout, _read(layout / "index.json")):
        annotations = descriptor.get("annotations") or {}
        names = [annotations[name] for name in TAGS if name in annotations]
        if tag is not None and tag not in names:
            continue
        configuration = _blob(layout, _blob(layout, descriptor)["config"])
        if _is_ours(configuration):
            found.setdefault(descriptor["digest"], (descriptor, configuration, names))
    # Of one for each kind of the processor, the one for all kinds.
    plain = {
        digest: one
        for digest, one in found.items()
        if "variant" not in (one[0].get("platform") or {})
    }
    chosen = list((plain or found).values())
    if not chosen:
        named = f" with the tag {tag}" if tag else ""
        sys.exit(f"the image has none for linux on {MACHINE}{named}")
    if len(chosen) > 1:
        names = [names[-1] if names else "one without" for _, _, names in chosen]
        sys.exit(f"the image has several: choose one by --tag: {_printable(', '.join(names))}")
    ((descriptor, configuration, _),) = chosen
    (layout / "index.json").unlink()
    index = {"schemaVersion": 2, "manifests": [{**descriptor, "annotations": {TAG: "app"}}]}
    (layout / "index.json").write_text(json.dumps(index))
    return configuration


def read_settings(configuration: dict[str, Any], runtime: Path) -> Settings:
    """From the image's configuration, and from what umoci made of it: it has looked the user up in
    the image's own files.
    """
    config, process = configuration.get("config") or {}, _read(runtime)["process"]
    entrypoint, command = config.get("Entrypoint") or [], config.get("Cmd") or []
    if not entrypoint:
        entrypoint, command = command[:1], command[1:]
    if not entrypoint:
        sys.exit("the image says neither Entrypoint nor Cmd: it is no app")
    environment = [one for one in process["env"] if not one.startswith("TERM=")]
    for text in (*entrypoint, *command, *environment, process["cwd"]):
        if "\0" in text or len(text.encode()) >= MAX_STRING:
            sys.exit("the image's configuration has a text that no program can be given")
    ports = [PORTS.fullmatch(port) for port in config.get("ExposedPorts") or {}]
    return Settings(
        entrypoint=entrypoint,
        command=command,
        environment=environment,
        directory=process["cwd"],
        user=process["user"]["uid"],
        group=process["user"]["gid"],
        groups=process["user"].get("additionalGids", []),
        ports=[int(port[1]) for port in ports if port],
    )


def add_entry(root: Path, settings: Settings, temporary: Path) -> tuple[str, str]:
    """Write the program that does what the configuration says. Returns its path in the guest, and
    that of the image's program.
    """
    program = _look_up(root, settings)
    with _Writable(root):
        inside(root, settings.directory).mkdir(parents=True, exist_ok=True)
        for path in (BIN_APP, ASIDE):
            parent, name = os.path.split(path)
            entry = inside(root, parent) / name
            if not os.path.lexists(entry):
                break
        else:
            sys.exit(f"the image has {BIN_APP} and {ASIDE} of its own")
        entry.parent.mkdir(parents=True, exist_ok=True)
        (temporary / "settings.h").write_bytes(header(settings, program))
        compile_for_guest(ENTRY, temporary / "entry", MACHINE, f"-I{temporary}")
        with _Writable(entry.parent):
            (temporary / "entry").rename(entry)
    return path, program


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
                sys.exit(f"{_printable(path)} of the image is a link that leads nowhere")
            target = (at / part).readlink()
            at = root if target.is_absolute() else at
            parts += str(target).split("/")[::-1]
        else:
            at /= part  # which "" and "." do not change
    return at


class _Writable:
    """A directory of an image may be one that its owner, who is not root, can't write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        self._mode = stat.S_IMODE(self._directory.stat().st_mode)
        self._directory.chmod(self._mode | stat.S_IWUSR)

    def __exit__(self, *_: object) -> None:
        self._directory.chmod(self._mode)


def _look_up(root: Path, settings: Settings) -> str:
    """The program's path in the guest, found as execvp(3) finds it in the working directory."""
    name = settings.entrypoint[0]
    variables = dict(one.partition("=")[::2] for one in settings.environment)
    search = [""] if "/" in name else variables.get("PATH", "").split(":")
    for place in search:
        path = str(PurePosixPath(settings.directory, place, name))
        found = inside(root, path)
        if found.is_file() and found.stat().st_mode & 0o111:
            return path
    sys.exit(f"the image has no program {_printable(name)}, which its configuration names")


def _manifests(
    layout: Path, index: dict[str, Any], depth: int = MAX_INDEXES
) -> Iterator[dict[str, Any]]:
    """The descriptors of the images that are there and may be for this machine, those of indexes
    in the index included. A name is on the outer one.
    """
    for descriptor in index["manifests"]:
        platform = descriptor.get("platform")
        if (platform and not _is_ours(platform)) or not _path(layout, descriptor).exists():
            continue
        if not any(kind in descriptor.get("mediaType", "") for kind in INDEX_TYPES):
            yield descriptor
        elif depth:
            outer = descriptor.get("annotations") or {}
            for inner in _manifests(layout, _blob(layout, descriptor), depth - 1):
                yield {**inner, "annotations": {**(inner.get("annotations") or {}), **outer}}


def _is_ours(platform: dict[str, Any]) -> bool:
    made_for = platform.get("os", "linux"), platform.get("architecture")
    return made_for == ("linux", PORT_NAMES[MACHINE])


def _path(layout: Path, descriptor: dict[str, Any]) -> Path:
    digest = DIGEST.fullmatch(descriptor["digest"])
    if digest is None:
        raise ValueError("a digest is none")
    return layout / "blobs" / digest[1] / digest[2]


def _blob(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    return _read(_path(layout, descriptor))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"it has no {path.name}")
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return value


def unpack_layers(temporary: Path) -> Path:
    """The files of the image, and RUNTIME beside them. Only root can give the files the owners
    that the image names; what is said of its user holds for the guest, whoever unpacks it.
    """
    umoci = debian.unpack("umoci") / "usr/bin/umoci"
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    root = ["--rootfs", "bundle/rootfs"]
    for words in (
        ["unpack", *rootless, "--image", "layout:app", "bundle"],
        ["raw", "runtime-config", *root, "--image", "layout:app", RUNTIME],
    ):
        command: list[str | Path] = [umoci, *words]
        done = subprocess.run(
            command, cwd=temporary, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            why = " ".join(done.stderr.split())
            remedy = "skopeo copy can make one of plain OCI, with layers in gzip"
            sys.exit(f"umoci can't unpack the image: {_printable(why)}; {remedy}")
    return temporary / "bundle/rootfs"


def _make_harmless(root: Path) -> None:
    """Every user of this host can reach the files: none is a device, or gives away its owner's
    rights. The guest has devices of its own.
    """
    for parent, _, names in os.walk(root):
        for name in names:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                path.unlink()
            elif stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                path.chmod(stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))


def _move(path: Path, target: Path) -> None:
    """A directory that moves is written: its parent changes, rename(2)."""
    mode = stat.S_IMODE(path.lstat().st_mode)
    is_directory = path.is_dir() and not path.is_symlink()
    if is_directory:
        path.chmod(mode | stat.S_IWUSR)
    path.rename(target)
    if is_directory:
        target.chmod(mode)


def _remove(directory: Path) -> None:
    """An image has directories that their owner may not write."""
    for parent, names, _ in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)


def _printable(text: str) -> str:
    """An image's words can't do anything to a terminal."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def _quoted(text: str) -> str:
    """A string of C, of any bytes: three digits each."""
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'
