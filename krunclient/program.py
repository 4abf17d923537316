"""Whether the guest will be able to execute a program, found out without running it.

Every path is resolved as the guest will resolve it: with ROOT_PATH as its root, whatever the
symbolic links in it say (openat2(2), RESOLVE_IN_ROOT).
"""

from __future__ import annotations

import errno
import os
import stat

from krunclient.bindings.libc import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from krunclient.errors import HostError, LaunchError, PermissionDeniedError, RootError, reason
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

# e_machine of <elf.h>, by the machine that uname(2) names.
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
ELF_64_BIT_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
PT_INTERP = 3
ELF_EXECUTABLE_TYPES = (2, 3)  # ET_EXEC, ET_DYN
PROGRAM_HEADER_BYTES = 56  # what load_elf_phdrs of the kernel demands,
MAX_PROGRAM_HEADERS = 65536 // PROGRAM_HEADER_BYTES  # as it does this

# <linux/binfmts.h>: BINPRM_BUF_SIZE, and how many interpreters exec_binprm follows.
SCRIPT_LINE_BYTES = 256
MAX_INTERPRETERS = 5


class Program(Record):
    is_elf: bool
    interpreter: str | None


def check(libc: Libc, root_path: str, exec_path: str, machine: str) -> None:
    """Check ROOT_PATH, the program, and the interpreters that it names, one after the other.

    Raises RootError for what the guest could not execute, PermissionDeniedError for what can't
    be read here.
    """
    root = _open_root(root_path)
    try:
        path = exec_path
        for _ in range(1 + MAX_INTERPRETERS):
            found = _check_file(libc, root, root_path, path, machine, wanted_by=exec_path)
            if found.interpreter is None:
                return
            path = found.interpreter
            if found.is_elf:
                # The kernel maps the loader of an ELF file and asks for no loader of its own.
                _check_file(libc, root, root_path, path, machine, wanted_by=exec_path)
                return
        raise _root_error(root_path, exec_path, "its #! interpreters are nested too deep")
    finally:
        os.close(root)


def _open_root(root_path: str) -> int:
    try:
        return os.open(root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        raise PermissionDeniedError(
            "ROOT_PATH can't be used", root_path, "permission denied", "check its directories"
        ) from None
    except OSError as error:
        raise RootError(
            "ROOT_PATH can't be used",
            root_path,
            reason(error),
            "give the directory that holds the guest's root file system",
        ) from None
    except ValueError:
        raise RootError(
            "ROOT_PATH can't be used", root_path, "it holds a NUL byte", "give a path"
        ) from None


def _check_file(
    libc: Libc, root: int, root_path: str, path: str, machine: str, wanted_by: str
) -> Program:
    """Check one file, and read which interpreter it names."""
    subject = "" if path == wanted_by else f"its interpreter {path} "
    try:
        located = openat2(
            libc,
            root,
            os.fsencode(path),
            os.O_PATH | os.O_CLOEXEC,
            RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        )
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
            raise _lookup_error(root_path, wanted_by, subject, error) from None
        try:
            return _read(readable, root_path, wanted_by, subject, machine)
        finally:
            os.close(readable)
    finally:
        os.close(located)


def _read(program: int, root_path: str, wanted_by: str, subject: str, machine: str) -> Program:
    head = os.pread(program, SCRIPT_LINE_BYTES, 0)
    if head.startswith(b"#!"):
        # Only space and tab part words here: a carriage return belongs to the path.
        words = head[2:].split(b"\n")[0].replace(b"\t", b" ").split(b" ")
        words = [word for word in words if word]
        if not words:
            raise _root_error(root_path, wanted_by, f"{subject}has an empty #! line")
        return Program(is_elf=False, interpreter="/" + os.fsdecode(words[0]).lstrip("/"))
    if not head.startswith(b"\x7fELF"):
        raise _root_error(root_path, wanted_by, f"{subject}is neither an ELF file nor a script")
    if (
        not head.startswith(ELF_64_BIT_LITTLE_ENDIAN)
        or _number(head, 18, 2) != ELF_MACHINES[machine]
    ):
        raise _root_error(root_path, wanted_by, f"{subject}is not for the architecture {machine}")
    size = os.fstat(program).st_size
    if (
        _number(head, 16, 2) not in ELF_EXECUTABLE_TYPES
        or _number(head, 54, 2) != PROGRAM_HEADER_BYTES
        or not 0 < _number(head, 56, 2) <= MAX_PROGRAM_HEADERS
        or _number(head, 32, 8) + PROGRAM_HEADER_BYTES * _number(head, 56, 2) > size
    ):
        raise _root_error(root_path, wanted_by, f"{subject}is no whole ELF program")
    return Program(is_elf=True, interpreter=_elf_interpreter(program, head))


def _elf_interpreter(program: int, header: bytes) -> str | None:
    """The path in PT_INTERP, elf(5)."""
    size = PROGRAM_HEADER_BYTES * _number(header, 56, 2)
    headers = os.pread(program, size, _number(header, 32, 8))
    for start in range(0, size, PROGRAM_HEADER_BYTES):
        if _number(headers, start, 4) == PT_INTERP:
            offset, length = _number(headers, start + 8, 8), _number(headers, start + 32, 8)
            path = os.pread(program, min(length, 4096), min(offset, 2**62))
            return os.fsdecode(path.split(b"\0")[0])
    return None


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


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
    return HostError(
        "the guest program can't be read",
        f"{wanted_by} in {root_path}",
        f"{subject}can't be opened: {reason(error)}",
        "see what this host is short of, or try again",
    )


def _root_error(root_path: str, wanted_by: str, why: str) -> RootError:
    return RootError(
        "the guest program can't be run",
        f"{wanted_by} in {root_path}",
        why,
        "put a program for the guest there, or name another by --exec",
    )
