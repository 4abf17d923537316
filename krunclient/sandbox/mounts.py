"""The file system that the VMM sees: the guest's root, its own descriptors and /dev/kvm.

    /guest          what the guest gets as its root: an overlay, with the volumes mounted in it
    /dev/kvm        that of the host
    /proc/self/fd   the VMM's descriptors, where libkrun's virtio-fs server reopens files

Nothing else of the host is there, so there is nothing that a guest that leaves its root could
find. The steps are data: `operations` makes the list, `perform` runs it in order. Host paths
appear in no mount option; they are opened first and bound by descriptor, so that no character
in them means anything.
"""

from __future__ import annotations

import ctypes
import errno
import os

from krunclient.bindings.libc import (
    AT_FDCWD,
    AT_RECURSIVE,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    MountAttributes,
    openat2,
)
from krunclient.errors import (
    SEE_CHECK,
    BusyError,
    LaunchError,
    PermissionDeniedError,
    failed_call,
    reason,
)
from krunclient.model import KVM
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunclient.bindings.libc import Libc
    from krunclient.model import Files
    from krunclient.secret import Secret

# The new root is mounted here, in the child's namespace alone: this directory is there on every
# host that can run a VM, and nothing below it is needed any more by then.
NEW_ROOT = "/dev"
# Where things are in it.
GUEST = "guest"
DESCRIPTORS = "proc/self/fd"
UPPER, WORK = "upper", "work"  # below an overlay's layer, the one for its writes
INIT_FILE_SOURCE = "init-file"
INIT_LAYER = "init-layer"
# A bound until the new root is closed to writes. It may have to hold the file for init: execve(2)
# bounds its arguments and variables to some megabytes, and escapes can make them six times as long.
SKELETON_BYTES = 2**25
MAX_HOSTS_BYTES = 2**20
# An inode takes about 1 KiB of kernel memory that the size of a tmpfs does not count.
BYTES_PER_INODE = 4096
NOSUID_NODEV = MS_NOSUID | MS_NODEV


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


class MakePrivate(Operation):
    """Let no mount made here be seen outside, and none made outside here."""

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)


class EnterTmpfs(Operation):
    """Mount the tmpfs that becomes the root, and go into it."""

    target: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        options = f"size={SKELETON_BYTES},mode=0755".encode()
        libc.mount(b"tmpfs", self.target.encode(), b"tmpfs", NOSUID_NODEV, options)
        os.chdir(self.target)


class Directory(Operation):
    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        os.mkdir(self.path, 0o755)


class FromHost(Operation):
    """A step that uses a path of the host."""

    host_path: str

    def source(self) -> str:
        return self.host_path


class BindDevice(FromHost):
    """A device of the host at a file of the new root.

    In a user namespace nobody owns it, and it can't be changed.
    """

    path: str
    user_namespace: bool

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        _bind(libc, sources[self.host_path], self.path, MS_BIND)
        if not self.user_namespace:
            # The device itself is used, not changed: root could give it other rights.
            flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC
            libc.mount(None, self.path.encode(), None, flags, None)


class BindDescriptors(Operation):
    """This process's /proc/self/fd, and no other part of /proc."""

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.mount(b"/proc/self/fd", self.path.encode(), None, MS_BIND, None)


class BindTree(FromHost):
    """A directory of the host with what is mounted below it."""

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        _bind(libc, sources[self.host_path], self.path, MS_BIND | MS_REC)


class BindLayer(BindTree):
    """An overlay directory, which must still be what supervisor/overlay.py left."""

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        super().execute(libc, sources)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_owner(descriptor, self.host_path)
        finally:
            os.close(descriptor)


class MemoryLayer(Operation):
    """A tmpfs for what the guest writes, with an upper and a work directory."""

    path: str
    bytes: int

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        options = f"size={self.bytes},nr_inodes={self.bytes // BYTES_PER_INODE},mode=0700"
        libc.mount(b"tmpfs", self.path.encode(), b"tmpfs", NOSUID_NODEV, options.encode())
        for name in (UPPER, WORK):
            os.mkdir(f"{self.path}/{name}")


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
        options = f"lowerdir={self.lower},upperdir={self.layer}/{UPPER}"
        options += f",workdir={self.layer}/{WORK}"
        options += ",userxattr" if self.user_xattr else ",redirect_dir=nofollow,metacopy=off"
        libc.mount(b"overlay", self.path.encode(), b"overlay", NOSUID_NODEV, options.encode())


class Unmount(Operation):
    """Take a layer out of sight: the overlay keeps its own hold of it."""

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.umount2(self.path.encode(), MNT_DETACH)


class BindVolume(FromHost):
    """A volume at its place in the guest's root.

    The place is made if it is missing. A symbolic link on the way, which an earlier run of the
    guest may have left, is not followed but refused.
    """

    guest_directory: str
    read_only: bool

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
        _bind(libc, sources[self.host_path], f"/proc/self/fd/{place}", MS_BIND | MS_REC)
        os.close(place)
        path = os.fsencode(f"{GUEST}/{self.guest_directory.lstrip('/')}")
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        attributes |= MOUNT_ATTR_RDONLY if self.read_only else 0
        wanted = MountAttributes(attributes)
        # With what is mounted below it.
        libc.mount_setattr(AT_FDCWD, path, AT_RECURSIVE, wanted, ctypes.sizeof(wanted))


class PlaceForInitFile(Operation):
    """An empty file for the InitFile to be mounted on, in a lower layer of its own: in the upper
    one, it would be left in an overlay that is kept.
    """

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        place = f"{INIT_LAYER}{self.path}"
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


class GuestProgram(FromHost):
    """A program for the guest, in the lower layer that also has the PlaceForInitFile. Its host path
    is opened for reading beforehand.
    """

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        os.makedirs(INIT_LAYER, exist_ok=True)
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
        descriptor = os.open(f"{INIT_LAYER}{self.path}", flags, 0o755)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.pread(sources[self.host_path], SKELETON_BYTES, 0))


class HostsFile(Operation):
    """The root's /etc/hosts with these addresses and names in the place of what it has for such
    names, in the lower layer that also has the PlaceForInitFile: the guest may change its own.
    """

    hosts: tuple[tuple[str, str], ...]

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        if os.path.islink("lower/etc"):  # which a directory in this layer would hide
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        os.makedirs(f"{INIT_LAYER}/etc", exist_ok=True)
        if os.path.isdir("lower/etc"):
            os.chmod(f"{INIT_LAYER}/etc", os.stat("lower/etc").st_mode & 0o7777)
        lines = "".join(f"{address}\t{name}\n" for address, name in self.hosts)
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
        descriptor = os.open(f"{INIT_LAYER}/etc/hosts", flags, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            own = _without({name.encode() for _, name in self.hosts}, _root_hosts(libc))
            file.write(own + (b"" if own.endswith(b"\n") or not own else b"\n") + lines.encode())


def _without(names: set[bytes], hosts: bytes) -> bytes:
    """A hosts(5) without these names."""
    kept = []
    for line in hosts.split(b"\n"):
        words = line.partition(b"#")[0].split()
        others = [name for name in words[1:] if name not in names]
        if others == words[1:]:
            kept.append(line)
        elif others:
            kept.append(b" ".join((words[0], *others)))
    return b"\n".join(kept)


def _root_hosts(libc: Libc) -> bytes:
    """The /etc/hosts of the root, which no link leads out of."""
    root = os.open("lower", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    flags, resolve = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, RESOLVE_IN_ROOT
    try:
        hosts = openat2(libc, root, b"etc/hosts", flags, resolve | RESOLVE_NO_MAGICLINKS)
    except FileNotFoundError:
        return b""
    finally:
        os.close(root)
    with os.fdopen(hosts, "rb") as file:
        return file.read(MAX_HOSTS_BYTES)


class InitFile(Operation):
    """The file for libkrun's init, if libkrun can't serve it from memory.

    It lies on the tmpfs of this namespace and is mounted on its name, so that no write of the
    guest's can carry it into a layer that stays.
    """

    path: str

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        place = f"{GUEST}{self.path}"
        # What an earlier guest has left in the upper layer may hide the place.
        if os.path.islink(place):
            os.unlink(place)
        if os.path.lexists(place) and not os.path.isfile(place):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        os.close(os.open(place, flags, 0o600))
        libc.mount(INIT_FILE_SOURCE.encode(), place.encode(), None, MS_BIND, None)


class PivotRoot(Operation):
    """Make the new root the only one, and closed to changes."""

    def execute(self, libc: Libc, sources: dict[str, int]) -> None:
        libc.pivot_root(b".", b".")
        libc.umount2(b".", MNT_DETACH)
        os.chdir("/")
        libc.mount(
            None, b"/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | NOSUID_NODEV | MS_NOEXEC, None
        )


def operations(
    files: Files,
    *,
    user_namespace: bool,
    init_file: str | None,
    guest_program: tuple[str, str] | None = None,
    kvm_device: str = KVM,
) -> tuple[Operation, ...]:
    """All steps in their order. `init_file` is the path in the guest, if one is needed,
    `guest_program` the paths on the host and in the guest of a program that is put there, and
    `kvm_device` the device of the host that becomes KVM.
    """
    if files.overlay is None:
        layer: Operation = MemoryLayer(path="layer", bytes=files.overlay_size_mib * 2**20)
    else:
        layer = BindLayer(host_path=files.overlay, path="layer")
    lower = f"{INIT_LAYER}:lower" if init_file or files.hosts or guest_program else "lower"
    return (
        MakePrivate(),
        EnterTmpfs(target=NEW_ROOT),
        Directory(path="lower"),
        Directory(path="layer"),
        Directory(path=GUEST),
        Directory(path="proc"),
        Directory(path="proc/self"),
        Directory(path=DESCRIPTORS),
        Directory(path="dev"),
        BindDevice(host_path=kvm_device, path=KVM.lstrip("/"), user_namespace=user_namespace),
        BindDescriptors(path=DESCRIPTORS),
        BindTree(host_path=files.root_path, path="lower"),
        layer,
        SameOwnerAndMode(like="lower", path=f"layer/{UPPER}", owner_too=not user_namespace),
        *((PlaceForInitFile(path=init_file),) if init_file else ()),
        *((HostsFile(hosts=files.hosts),) if files.hosts else ()),
        *(
            (GuestProgram(host_path=guest_program[0], path=guest_program[1]),)
            if guest_program
            else ()
        ),
        Overlay(lower=lower, layer="layer", path=GUEST, user_xattr=user_namespace),
        Unmount(path="layer"),
        Unmount(path="lower"),
        *(
            BindVolume(
                host_path=volume.host_directory,
                guest_directory=volume.guest_directory,
                read_only=volume.read_only,
            )
            for volume in files.volumes
        ),
        *((InitFile(path=init_file),) if init_file else ()),
        PivotRoot(),
    )


def open_sources(steps: tuple[Operation, ...], opened: Mapping[str, int]) -> dict[str, int]:
    """A descriptor of each host path, opened in the namespace where it is to be bound, before
    the host's tree is gone from sight there. Those of `opened` are there already.

    Raises PermissionDeniedError or HostError.
    """
    sources = dict(opened)
    for step in steps:
        path = step.source()
        if path is not None and path not in sources:
            try:
                sources[path] = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                raise files_error(error, path, "open") from None
    return sources


def perform(
    libc: Libc, steps: tuple[Operation, ...], sources: dict[str, int], init_file: Secret
) -> None:
    """Run the steps. `init_file` is the content of the InitFile, if there is one: the steps
    are part of the plan, which holds no secret.

    Raises HostError, PermissionDeniedError or BusyError, naming the step.
    """
    for step in steps:
        try:
            if isinstance(step, InitFile):
                _write_private(INIT_FILE_SOURCE, init_file.reveal().encode())
            step.execute(libc, sources)
        except OSError as error:
            thing = step.source() or step.describe()
            raise files_error(error, thing, type(step).__name__) from None


def _write_private(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def check_owner(descriptor: int, directory: str) -> None:
    """Raises PermissionDeniedError if anybody else could have put something into the overlay.

    A process whose working directory is inside stays there when the directory is closed to it: so
    it must have been closed to others from the start.
    """
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise layer_error(directory, f"it belongs to user {found.st_uid}")
    if found.st_mode & 0o077:
        raise layer_error(directory, f"it is open to others, mode {found.st_mode & 0o7777:o}")


def layer_error(directory: str, why: str) -> LaunchError:
    return PermissionDeniedError(
        "the overlay can't be used",
        directory,
        why,
        "name a directory that is not there yet, or an empty one of this user's, mode 700",
    )


def files_error(error: OSError, thing: str, step: str) -> LaunchError:
    """The error for a step that failed on a thing."""
    what, why = "the guest's files can't be set up", reason(error)
    if error.errno in (errno.EACCES, errno.EROFS) or (
        error.errno == errno.EPERM and step in ("open", "mkdir")
    ):
        return PermissionDeniedError(what, thing, why, "check who may use it")
    if error.errno == errno.EBUSY:
        return BusyError(what, thing, why, "try again")
    remedies = {
        "Overlay": "use Linux 5.11 or later with overlayfs (modprobe overlay), and layers on a "
        "file system that overlayfs takes",
        "BindTree": "let nothing be mounted below that directory",
        "BindVolume": "let the place in the guest be a directory, with no link on the way, "
        "and use Linux 5.12 or later",
    }
    if error.errno == errno.EINVAL:
        in_chroot = "in a chroot, mount its root directory on itself first (mount --bind)"
        remedies["MakePrivate"] = in_chroot
    if not thing.startswith(step):
        thing = f"{thing}: {step}"
    return failed_call(what, thing, error, remedies.get(step, SEE_CHECK))


def _bind(libc: Libc, source: int, target: str, flags: int) -> None:
    libc.mount(f"/proc/self/fd/{source}".encode(), os.fsencode(target), None, flags, None)
