"""A user land for an emulated host of another architecture: Debian's packages, unpacked.

No program of it runs here and no privilege is needed, so nothing of it is configured: what a host
needs of that is written below.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import debian
from target import TOP

PACKAGES = (
    *("bash", "busybox-static", "coreutils", "findutils", "grep", "hostname", "iproute2", "kmod"),
    *("libc-bin", "mount", "procps", "python3", "sed", "util-linux"),
    *("gcc", "libc6-dev", "python3-hypothesis"),  # which some tests use
)
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shadow": "",
    "etc/hosts": "127.0.0.1 localhost\n",
}
LINKS = {"usr/bin/python": "python3", "usr/sbin/poweroff": "../bin/busybox", "usr/bin/sh": "bash"}
DIRECTORIES = ("etc/lvm", "dev", "proc", "root", "run", "srv", "sys", "tmp", "var/tmp")
SET_ID_BITS = stat.S_ISUID | stat.S_ISGID
MERGED = ("bin", "sbin", "lib")  # with those of /usr


def prepare(machine: str, kernel: Path) -> Path:
    """The root directory, with the modules of a kernel's package, made where it is not there yet.

    This checkout has a mount point in it.
    """
    made_from = repr((Path(__file__).read_bytes(), kernel.name, debian.codename(), TOP))
    name = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    root = TOP / "build/hosts" / machine / name
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root.parent))
        temporary.chmod(0o755)
        _make(temporary, machine, kernel)
        temporary.rename(root)
    return root


def link_tree(source: Path, target: Path) -> None:
    """Lay a tree over another: links stay as they are, all else is linked and not copied."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link, dirs_exist_ok=True)


def drop_set_id_bits(root: Path) -> None:
    """A user who unpacks files owns them: it is him that a set-user-ID mount(8) would run as."""
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & SET_ID_BITS:
            path.chmod(stat.S_IMODE(mode) & ~SET_ID_BITS)


def _make(root: Path, machine: str, kernel: Path) -> None:
    debian.unpack_all(PACKAGES, root, machine)
    drop_set_id_bits(root)
    (modules,) = kernel.parent.parent.glob("**/lib/modules/*")
    link_tree(modules, root / "lib/modules" / modules.name)
    depmod = shutil.which("depmod", path=debian.search_path()) or "depmod"
    subprocess.run([depmod, "-b", root, modules.name], check=True)
    for name in MERGED:
        if (root / name).is_dir() and not (root / name).is_symlink():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
            (root / name).symlink_to(f"usr/{name}")
    for name in (*DIRECTORIES, str(TOP).lstrip("/")):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (root / name).write_text(text)
    for name, target in LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
