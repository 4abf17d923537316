"""Whether the guest will be able to execute a program, found out without running it.

Every path is resolved as the guest will resolve it: with ROOT_PATH as its root, whatever the
symbolic links in it say (openat2(2), RESOLVE_IN_ROOT).
"""

from __future__ import annotations

import errno
import os
import stat

from krunclient.bindings.libc import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from krunclient.errors import (
    LIMITS,
    HostError,
    LaunchError,
    PermissionDeniedError,
    RootPathError,
    failed_call,
    reason,
)
from krunclient.host.elf import MAGIC, Elf
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc

# <linux/binfmts.h>: BINPRM_BUF_SIZE, and how many interpreters exec_binprm follows.
SCRIPT_LINE_BYTES = 256
MAX_INTERPRETERS = 5


class Program(Record):
    is_elf: bool
    interpreter: str | None


def find(
    libc: Libc, root_path: str, exec_paths: tuple[str, ...], architecture: Architecture
) -> str:
    """The first of these programs that ROOT_PATH has. It is checked, and so are the interpreters
    that it names, one after the other.

    Raises RootPathError for what the guest could not execute, PermissionDeniedError for what can't
    be read here.
    """
    root = _open_root(root_path)
    try:
        present = next((path for path in exec_paths if _is_there(libc, root, path)), None)
        if present is None:
            raise _root_error(root_path, " or ".join(exec_paths), "does not exist")
        _check(libc, root, root_path, present, architecture)
        return present
    finally:
        os.close(root)


def _is_there(libc: Libc, root: int, path: str) -> bool:
    try:
        os.close(_locate(libc, root, path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # what is wrong with it, the check tells
    return True


def _check(
    libc: Libc, root: int, root_path: str, exec_path: str, architecture: Architecture
) -> None:
    path = exec_path
    for _ in range(1 + MAX_INTERPRETERS):
        found = _check_file(libc, root, root_path, path, architecture, wanted_by=exec_path)
        if found.interpreter is None:
            return
        path = found.interpreter
        if found.is_elf:
            # The kernel maps the loader of an ELF file and asks for no loader of its own.
            _check_file(libc, root, root_path, path, architecture, wanted_by=exec_path)
            return
    raise _root_error(root_path, exec_path, "its #! interpreters are nested too deep")


def _open_root(root_path: str) -> int:
    try:
        return os.open(root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        raise PermissionDeniedError(
            "ROOT_PATH can't be used", root_path, "permission denied", "check its directories"
        ) from None
    except OSError as error:
        if error.errno in LIMITS:
            raise
        raise RootPathError(
            "ROOT_PATH can't be used",
            root_path,
            reason(error),
            "give the directory that holds the guest's root file system",
        ) from None
    except ValueError:
        raise RootPathError(
            "ROOT_PATH can't be used", root_path, "it holds a NUL byte", "give a path"
        ) from None


def _locate(libc: Libc, root: int, path: str) -> int:
    """A descriptor of a path as the guest would resolve it. Raises OSError."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    return openat2(libc, root, os.fsencode(path), os.O_PATH | os.O_CLOEXEC, resolve)


def _check_file(
    libc: Libc, root: int, root_path: str, path: str, architecture: Architecture, wanted_by: str
) -> Program:
    """Check one file, and read which interpreter it names."""
    subject = "" if path == wanted_by else f"its interpreter {path} "
    try:
        located = _locate(libc, root, path)
    except OSError as error:
        raise _lookup_error(root_path, wanted_by, subject, error) from None
    try:
        mode = os.fstat(located).st_mode
        if not stat.S_ISREG(mode):
            raise _root_error(root_path, wanted_by, f"{subject}is no regular file")
        if not mode & 0o111:
            raise _root_error(root_path, wanted_by, f"{subject}is not executable")
        try:
            # Reopened, because opening a device node for reading could already do something.
            readable = os.open(f"/proc/self/fd/{located}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if not os.path.exists("/proc/self/fd"):
                what, remedy = "the guest program can't be read", "mount it"
                raise HostError(what, "/proc", "it is not mounted", remedy) from None
            raise _lookup_error(root_path, wanted_by, subject, error) from None
        try:
            return _read(readable, root_path, wanted_by, subject, architecture)
        finally:
            os.close(readable)
    finally:
        os.close(located)


def _read(
    program: int, root_path: str, wanted_by: str, subject: str, architecture: Architecture
) -> Program:
    head = os.pread(program, SCRIPT_LINE_BYTES, 0)
    if head.startswith(b"#!"):
        # Only space and tab part words here: a carriage return belongs to the path.
        words = head[2:].split(b"\n")[0].replace(b"\t", b" ").split(b" ")
        words = [word for word in words if word]
        if not words:
            raise _root_error(root_path, wanted_by, f"{subject}has an empty #! line")
        return Program(is_elf=False, interpreter="/" + os.fsdecode(words[0]).lstrip("/"))
    if not head.startswith(MAGIC):
        raise _root_error(root_path, wanted_by, f"{subject}is neither an ELF file nor a script")
    elf = Elf(program)
    if not elf.is_for(architecture.elf_machine):
        why = f"{subject}is not for the architecture {architecture.machine}"
        raise _root_error(root_path, wanted_by, why)
    if not elf.is_whole_program():
        raise _root_error(root_path, wanted_by, f"{subject}is no whole ELF program")
    return Program(is_elf=True, interpreter=elf.interpreter())


def _lookup_error(root_path: str, wanted_by: str, subject: str, error: OSError) -> LaunchError:
    if error.errno == errno.ENOSYS:
        return HostError(
            "this kernel lacks a system call", "openat2", "it is Linux 5.6", "use Linux 5.11"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(
            "the guest program can't be read",
            f"{wanted_by} in {root_path}",
            f"{subject}can't be opened: permission denied",
            "make it readable to the user that runs krunclient",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _root_error(root_path, wanted_by, f"{subject}does not exist")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return _root_error(root_path, wanted_by, f"{subject}can't be opened: {reason(error)}")
    thing = f"{subject}of {wanted_by} in {root_path}" if subject else f"{wanted_by} in {root_path}"
    remedy = "see what this host is short of, or try again"
    return failed_call("the guest program can't be read", thing, error, remedy)


def _root_error(root_path: str, wanted_by: str, why: str) -> RootPathError:
    return RootPathError(
        "the guest program can't be run",
        f"{wanted_by} in {root_path}",
        why,
        "put a program for the guest there, or name another by --exec",
    )
