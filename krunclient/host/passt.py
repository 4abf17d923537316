"""What `--network passt` needs of this host: programs, a user, and a libkrun that makes cards."""

from __future__ import annotations

import os

from krunclient.errors import HostError, failed_call
from krunclient.host.libraries import PACKAGE
from krunclient.model import User
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.arch import Architecture
    from krunclient.config import Config
    from krunclient.model import LibraryPair

NOBODY = User(uid=65534, gid=65534, groups=())
INSTALL = "install the package passt, name it by --passt, or use --network tsi"


class Programs(Record):
    """What `--network passt` runs: paths of passt, and of the program that sets the card up in the
    guest. `user` is who passt runs as, None for the user that started krunclient.
    """

    passt: str
    guest_program: str
    user: User | None


def programs(config: Config, architecture: Architecture, vmm_uid: int) -> Programs:
    """`vmm_uid` is who the VMM runs as: passt, which needs no right at all, is not root with it.

    Raises HostError.
    """
    user = config.user
    if vmm_uid == 0:
        # In a user namespace of one user, root is that user on the host, and there is no other.
        user = NOBODY if _is_mapped(NOBODY.uid) else None
    return Programs(
        passt=find(config.paths.passt, config.paths.search),
        guest_program=find_guest_program(architecture),
        user=user,
    )


def check_cards(pair: LibraryPair) -> None:
    """Raises HostError for a libkrun that makes no network card."""
    if not pair.features.krun_add_net_unixstream:
        raise HostError(
            "--network passt can't be used",
            pair.libkrun,
            "it has no function krun_add_net_unixstream",
            "use --network tsi, or libkrun 1.16 or later",
        )


def _is_mapped(uid: int) -> bool:
    """Whether this user namespace has a user of this id, user_namespaces(7)."""
    with open("/proc/self/uid_map") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    return any(first <= uid < first + count for first, _, count in ranges)


def find(given: str | None, search_path: str) -> str:
    """The program that was given, else the first of that name on the search path, execvp(3).

    Only absolute directories are looked into. Raises HostError where there is none.
    """
    if given is not None:
        try:
            os.stat(given)
        except OSError as error:
            raise failed_call("passt can't be used", given, error, INSTALL) from None
        if not _is_program(given):
            raise HostError("passt can't be used", given, "it can't be read and executed", INSTALL)
        return given
    for directory in search_path.split(":"):
        path = f"{directory}/passt"
        if directory.startswith("/") and _is_program(path):
            return path
    raise HostError("passt was not found", search_path, "there is none", INSTALL)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.R_OK | os.X_OK)


def find_guest_program(architecture: Architecture) -> str:
    """Raises HostError for a copy of krunclient that has none."""
    path = os.path.join(PACKAGE, "bundled", architecture.machine, "guest-network")
    if not os.path.isfile(path):
        what, why = "--network passt can't be used", "there is no such file"
        raise HostError(what, path, why, "run the executable that nox -s build makes")
    return path
