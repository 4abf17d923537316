"""The file system that the VMM sees: the guest's root, its own descriptors and /dev/kvm.

    /guest          what the guest gets as its root: an overlay, with the volumes mounted in it
    /kvm            /dev/kvm of the host; libkrun opens it as /dev/kvm
    /proc/self/fd   the VMM's descriptors, where libkrun's virtio-fs server reopens files

Nothing else of the host is there, so there is nothing that a guest that leaves its root could
find. The steps are data: `operations` makes the list, `perform` runs it in order. Host paths
appear in no mount option; they are opened first and bound by descriptor, so that no character
in them means anything.
"""

from __future__ import annotations

import errno
import os

from krunclient.bindings.libc import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
)
from krunclient.errors import BusyError, HostError, LaunchError, PermissionDeniedError, reason
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

# The new root is built on top of this directory, in the child's namespace alone: it is there on
# every host that can run a VM, and nothing below it is needed any more by then.
BUILDING_SITE = "/dev"
GUEST = "guest"
SKELETON_BYTES = 2**20
# An inode takes about 1 KiB of kernel memory that the size of a tmpfs does not count.
BYTES_PER_INODE = 4096
KEEP = MS_NOSUID | MS_NODEV


class Volume(Record):
    """A host directory inside the guest. `guest_directory` is absolute in the guest."""

    host_directory: str
    guest_directory: str
    read_only: bool


class Files(Record):
    """What the guest finds. `overlay` is None where its writes stay in memory."""

    root_path: str
    overlay: str | None
    overlay_size_mib: int
    volumes: tuple[Volume, ...]


class Operation(Record):
    """One step. Paths are relative to the new root, sources are host paths opened before."""

    def describe(self) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self.as_dict().items())
        return f"{type(self).__name__} {fields}".rstrip()

    def source(self) -> str | None:
        """The host path that is to be opened before the first step, if any."""
        return None

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        """Raises OSError."""
        raise NotImplementedError


class Detach(Operation):
    """Let no mount made here be seen outside, and none made outside here."""

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)


class EnterTmpfs(Operation):
    """Mount the tmpfs that becomes the root, and go into it."""

    target: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        options = f"size={SKELETON_BYTES},mode=0755".encode()
        libc.mount(b"tmpfs", self.target.encode(), b"tmpfs", KEEP, options)
        os.chdir(self.target)


class Directory(Operation):
    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        os.makedirs(self.path, 0o755, exist_ok=True)


class BindDevice(Operation):
    """A device of the host at a file of the new root."""

    device: str
    path: str

    def source(self) -> str:
        return self.device

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        _bind(libc, sources[self.device], self.path, MS_BIND)


class BindDescriptors(Operation):
    """This process's /proc/self/fd, and no other part of /proc."""

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.mount(b"/proc/self/fd", self.path.encode(), None, MS_BIND, None)


class BindTree(Operation):
    """A directory of the host with what is mounted below it."""

    host_directory: str
    path: str
    read_only: bool

    def source(self) -> str:
        return self.host_directory

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        _bind(libc, sources[self.host_directory], self.path, MS_BIND | MS_REC)
        _restrict(libc, self.path, MS_RDONLY if self.read_only else 0)


class MemoryLayer(Operation):
    """A tmpfs for what the guest writes, with an upper and a work directory."""

    path: str
    bytes: int

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        options = f"size={self.bytes},nr_inodes={self.bytes // BYTES_PER_INODE},mode=0700"
        libc.mount(b"tmpfs", self.path.encode(), b"tmpfs", KEEP, options.encode())
        os.mkdir(f"{self.path}/upper")
        os.mkdir(f"{self.path}/work")


class SameOwnerAndMode(Operation):
    """The upper directory is what the guest sees as the attributes of its root.

    In a user namespace of one user, all is that user's.
    """

    like: str
    path: str
    owner_too: bool

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        found = os.stat(self.like)
        if self.owner_too:
            os.chown(self.path, found.st_uid, found.st_gid)
        os.chmod(self.path, found.st_mode & 0o7777)


class Overlay(Operation):
    """An overlay of two layers, Documentation/filesystems/overlayfs.rst of the kernel.

    No redirect and no metacopy: a layer that a hostile guest has written can then not make the
    kernel look a file up under another name.
    """

    lower: str
    layer: str
    path: str
    user_xattr: bool

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        options = f"lowerdir={self.lower},upperdir={self.layer}/upper,workdir={self.layer}/work"
        options += ",userxattr" if self.user_xattr else ",redirect_dir=nofollow,metacopy=off"
        libc.mount(b"overlay", self.path.encode(), b"overlay", KEEP, options.encode())


class Unmount(Operation):
    """Take a layer out of sight: the overlay keeps its own hold of it."""

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.umount2(self.path.encode(), MNT_DETACH)


class BindVolume(Operation):
    """A volume at its place in the guest's root.

    The place is made where it is missing. A symbolic link on the way, which an earlier run of the
    guest may have left, is not followed but refused.
    """

    host_directory: str
    guest_directory: str
    read_only: bool

    def source(self) -> str:
        return self.host_directory

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        place = os.open(GUEST, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in self.guest_directory.split("/"):
            if name in ("", "."):
                continue
            try:
                os.mkdir(name, 0o755, dir_fd=place)
            except FileExistsError:
                pass
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            deeper = os.open(name, flags, dir_fd=place)
            os.close(place)
            place = deeper
        # Not by the descriptor's link for the second mount: that names what is now covered.
        _bind(libc, sources[self.host_directory], f"/proc/self/fd/{place}", MS_BIND | MS_REC)
        os.close(place)
        path = f"{GUEST}/{self.guest_directory.lstrip('/')}"
        _restrict(libc, path, MS_RDONLY if self.read_only else 0)


class ConfigFile(Operation):
    """The file for libkrun's init where libkrun can't serve it from memory.

    It lies on a tmpfs of this namespace and is mounted on its name, so that no write of the
    guest's can carry it into a layer that stays.
    """

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        """The content comes by `perform`: a plan holds no secret."""
        place = f"{GUEST}{self.path}"
        if os.path.lexists(place) and not os.path.isfile(place):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if os.path.islink(place):
            os.unlink(place)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        libc.mount(b"config", place.encode(), None, MS_BIND, None)


class PivotRoot(Operation):
    """Make the new root the only one, and closed to changes."""

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.pivot_root(b".", b".")
        libc.umount2(b".", MNT_DETACH)
        os.chdir("/")
        libc.mount(None, b"/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | KEEP | MS_NOEXEC, None)


def operations(
    files: Files, *, user_namespace: bool, config_file: str | None
) -> tuple[Operation, ...]:
    """All steps in their order. `config_file` is the path in the guest, where one is needed."""
    if files.overlay is None:
        layer: Operation = MemoryLayer(path="layer", bytes=files.overlay_size_mib * 2**20)
    else:
        layer = BindTree(host_directory=files.overlay, path="layer", read_only=False)
    config = (ConfigFile(path=config_file),) if config_file else ()
    return (
        Detach(),
        EnterTmpfs(target=BUILDING_SITE),
        Directory(path="lower"),
        Directory(path="layer"),
        Directory(path=GUEST),
        Directory(path="proc/self/fd"),
        Directory(path="dev"),
        BindDevice(device="/dev/kvm", path="dev/kvm"),
        BindDescriptors(path="proc/self/fd"),
        BindTree(host_directory=files.root_path, path="lower", read_only=True),
        layer,
        SameOwnerAndMode(like="lower", path="layer/upper", owner_too=not user_namespace),
        Overlay(lower="lower", layer="layer", path=GUEST, user_xattr=user_namespace),
        Unmount(path="layer"),
        Unmount(path="lower"),
        *(
            BindVolume(
                host_directory=volume.host_directory,
                guest_directory=volume.guest_directory,
                read_only=volume.read_only,
            )
            for volume in files.volumes
        ),
        *config,
        PivotRoot(),
    )


def open_sources(steps: tuple[Operation, ...]) -> dict[str, int]:
    """A descriptor of each host path, opened in the namespace where it is to be bound, before
    the host's tree is gone from sight there.

    Raises PermissionDeniedError or HostError.
    """
    sources: dict[str, int] = {}
    for step in steps:
        path = step.source()
        if path is not None and path not in sources:
            try:
                sources[path] = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                raise _error(error, path, "open") from None
    return sources


def perform(
    libc: Libc, steps: tuple[Operation, ...], sources: dict[str, int], config: bytes
) -> None:
    """Run the steps. `config` is the content of the ConfigFile, where there is one.

    Raises HostError, PermissionDeniedError or BusyError, naming the step.
    """
    for step in steps:
        try:
            if isinstance(step, ConfigFile):
                _write_private("config", config)
            step.execute(libc, sources)
        except OSError as error:
            raise _error(error, step.source() or step.describe(), type(step).__name__) from None


def _write_private(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def prepare_overlay(directory: str) -> None:
    """Make the two directories of a layer that stays. Raises PermissionDeniedError, HostError."""
    for path in (directory, f"{directory}/upper", f"{directory}/work"):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise _error(error, path, "mkdir") from None


def _error(error: OSError, thing: str, step: str) -> LaunchError:
    if error.errno in (errno.EACCES, errno.EROFS) or (
        error.errno == errno.EPERM and step in ("open", "mkdir")
    ):
        return PermissionDeniedError(
            "the guest's files can't be set up", thing, reason(error), "check who may use it"
        )
    if error.errno == errno.EBUSY:
        return BusyError("the guest's files can't be set up", thing, reason(error), "try again")
    remedy = {
        "Detach": "in a chroot, mount its root directory on itself first (mount --bind)",
        "Overlay": "use Linux 5.11 or later with overlayfs (modprobe overlay), and layers on a "
        "file system that overlayfs takes",
        "BindTree": "let nothing be mounted below that directory",
        "BindVolume": "let the place in the guest be a directory, with no link on the way",
    }.get(step, "see what this host lacks by krunclient --check")
    return HostError("the guest's files can't be set up", thing, f"{step}: {reason(error)}", remedy)


def _bind(libc: Libc, source: int, target: str, flags: int) -> None:
    libc.mount(f"/proc/self/fd/{source}".encode(), os.fsencode(target), None, flags, None)


def _restrict(libc: Libc, path: str, flags: int) -> None:
    """Set a mount's own flags. In a user namespace those that it came with can't be taken off."""
    kept = os.statvfs(path).f_flag & (MS_NOEXEC | MS_RDONLY)
    atime = os.statvfs(path).f_flag & ATIME_FLAGS
    flags |= MS_REMOUNT | MS_BIND | KEEP | kept | _atime(atime)
    libc.mount(None, os.fsencode(path), None, flags, None)


# statvfs(3) and mount(2) have other numbers for the same flags of access times.
ATIME_FLAGS = os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME
MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 1024, 2048, 1 << 21


def _atime(found: int) -> int:
    return (
        (MS_NOATIME if found & os.ST_NOATIME else 0)
        | (MS_NODIRATIME if found & os.ST_NODIRATIME else 0)
        | (MS_RELATIME if found & os.ST_RELATIME else 0)
    )
