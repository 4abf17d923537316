"""The overlay directory, before the VMM is there: made, checked, and claimed for one VM."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from krunclient.errors import BusyError, PermissionDeniedError, failed_call
from krunclient.sandbox.mounts import UPPER, WORK, check_owner, files_error, layer_error
from krunclient.sandbox.privileges import user_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.model import User

LAYERS = (UPPER, WORK)
LOCK_NAME = "lock"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def claim(directory: str, user: User | None) -> int:
    """Make the directory if it is missing, check it, and claim it, as the user that the VMM
    runs as, so that it is that user's. `user` is None for the one that krunclient runs as.

    Returns the descriptor that holds the claim. Raises BusyError if another VM has it,
    PermissionDeniedError or HostError.
    """
    if user is None:
        return _claim(directory)
    try:
        os.setegid(user.gid)
        os.seteuid(user.uid)
    except OSError as error:
        raise user_error(user, error) from None
    try:
        return _claim(directory)
    finally:
        os.seteuid(0)
        os.setegid(0)


def _claim(directory: str) -> int:
    _prepare(directory)
    return _lock(directory)


def _prepare(directory: str) -> None:
    """Make the directories of a layer that stays, closed to all but this user.

    What a guest writes there may be set-user-ID. A directory that is there already is taken as it
    is or refused: its mode is its owner's business.
    """
    try:
        _make_directory(directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(directory, flags)
    except OSError as error:
        raise files_error(error, directory, "mkdir") from None
    try:
        check_owner(descriptor, directory)
        if os.listdir(descriptor) and not _has_layers(descriptor):
            raise layer_error(directory, "it holds something else")
        for name in LAYERS:
            _make_directory(name, descriptor)
        if not _has_layers(descriptor):
            raise layer_error(directory, "upper and work in it are not both directories")
    except OSError as error:
        raise files_error(error, directory, "mkdir") from None
    finally:
        os.close(descriptor)


def _make_directory(path: str, parent: int | None = None) -> None:
    try:
        os.mkdir(path, 0o700, dir_fd=parent)
    except FileExistsError:
        pass


def _has_layers(descriptor: int) -> bool:
    try:
        found = [os.stat(name, dir_fd=descriptor, follow_symlinks=False) for name in LAYERS]
    except FileNotFoundError:
        return False
    return all(stat.S_ISDIR(one.st_mode) for one in found)


def _holder(lock: int) -> str:
    """The process that holds a lock, by proc_locks(5), as an addition to a sentence; empty if this
    process can't see it.

    Lines there name a file by another device than stat(2) on btrfs and overlayfs. So a lock that
    is this process's own, of a kind that is no hindrance to flock(2), tells the name.
    """
    try:
        fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with open(f"/proc/self/fdinfo/{lock}") as file:
            own = [line.removeprefix("lock:").split() for line in file if line.startswith("lock:")]
        file_id = own[0][5]
        with open("/proc/locks") as file:
            for line in file:
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5] == file_id:
                    return f": process {fields[4]}"
    except (OSError, IndexError):
        pass
    return ""


def _lock(directory: str) -> int:
    path = os.path.join(directory, LOCK_NAME)
    what = "the overlay can't be used"
    try:
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(path, flags, 0o600)
        found = os.fstat(lock)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        why = f"another VM has it{_holder(lock)}"
        raise BusyError(what, directory, why, "use another directory") from None
    except OSError as error:
        if error.errno in NO_SPACE:
            raise failed_call(what, path, error, "make room on that file system") from None
        remedy = "check who may write there"
        raise failed_call(what, path, error, remedy, PermissionDeniedError) from None
    return lock
