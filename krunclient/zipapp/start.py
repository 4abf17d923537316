"""The executable's first stage: from its own few lines to the extracted code, and on into it.

A shell hands it to Python as text, in front of the archive, so each start compiles it: it is small,
and imports nothing that a launch does not need anyway. It takes the copy where most users have it.
All else is `bootstrap`'s: other places, a first start, damage, an old Python. For the sake of that,
only the syntax of old Pythons is used here.

Code is what is in one file, checked by its CRC-32 each time; what has been damaged is extracted
anew. Damage is not attack: that nobody else can change the file is seen by its directories.
"""

import gc

gc.disable()  # until the VMM runs: what a launch makes, it keeps

import marshal
import os
import sys
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CODE = "code"  # the file of what a launch imports


def start(
    archive: str, build_id: str, parent: "int | None" = None, size: int = 0, crc: int = 0
) -> None:
    """`parent` is the process that started this one, if the first line told it. The rest are the
    size of the archive's end and its CRC-32: zipimport, which reads that, looks at no checksum.
    """
    name = "%s-%s%s" % (build_id, sys.implementation.cache_tag, sys.abiflags)
    place = os.environ.get("XDG_CACHE_HOME", "")
    rest = "/krunclient"
    if place[:1] != "/":
        place, rest = os.environ.get("HOME", ""), "/.cache/krunclient"
    try:
        directory = os.path.realpath(place + rest)
        if place[:1] != "/" or not is_trusted(directory):
            raise OSError
        launch = load("%s/%s" % (directory, name))
    except (OSError, ValueError, EOFError, TypeError):
        # Only few starts pay for the imports of this.
        sys.path.insert(0, archive)
        try:
            with open(archive, "rb", 0) as file:
                file.seek(-size, 2)
                if zlib.crc32(file.read()) != crc:
                    raise ValueError
            import bootstrap
        except (OSError, ValueError, ImportError):
            why = "its end is not what it was; install it again"
            line = "krunclient: error: the executable is damaged: %s: %s\n" % (archive, why)
            try:
                os.write(2, os.fsencode(line))
            finally:
                os._exit(69)
        launch = bootstrap.load(archive, name)
        del sys.path[0]
    launch(parent)


def is_trusted(directory: str) -> bool:
    """Whether nobody but this user and root can change what a path without links leads to.

    The directory is the user's own, closed to others, and libraries can be loaded from it. Raises
    OSError.
    """
    found = os.lstat(directory)
    return (
        found.st_uid == os.geteuid()
        and found.st_mode & 0o170077 == 0o040000  # <sys/stat.h>: S_IFMT, S_IFDIR
        and not os.statvfs(directory).f_flag & os.ST_NOEXEC
        and is_guarded(os.path.dirname(directory))
    )


def is_guarded(path: str) -> bool:
    """Whether a directory and each one above it belongs to the user or to root, and is writable
    by others only where the sticky bit keeps them from renaming. Raises OSError.

    The owner of / counts as root: in a user namespace without the host's root, user_namespaces(7),
    everything of his is the overflow user's.
    """
    owners = 0, os.geteuid(), os.lstat("/").st_uid
    while True:
        found = os.lstat(path)
        mode = found.st_mode
        if mode & 0o170000 != 0o040000 or found.st_uid not in owners:
            return False
        if mode & 0o022 and not mode & 0o1000:  # S_ISVTX
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def load(target: str) -> "Callable[[int | None], None]":
    """What starts a launch by the copy in a directory.

    Raises OSError, ValueError, EOFError or TypeError where that is not whole.
    """
    loader, content = read("%s/%s" % (target, CODE))
    namespace = {}  # type: dict[str, Any]
    exec(loader, namespace)
    prepare = namespace["prepare"]
    return prepare(target, content, read)  # type: ignore[no-any-return]


def read(path: str) -> "Any":
    """What `extract` wrote there. Raises OSError, ValueError, EOFError or TypeError."""
    with open(path, "rb", 0) as file:
        data = memoryview(file.read())
    if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise ValueError("%s is damaged" % path)
    return marshal.loads(data[4:])
