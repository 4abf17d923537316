"""Where passt is, and the program that sets its network card up in the guest."""

from __future__ import annotations

import os

from krunclient.errors import HostError
from krunclient.host.libraries import PACKAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.arch import Architecture

INSTALL = "install the package passt, name it by --passt, or use --network tsi"


def find(given: str | None, search_path: str) -> str:
    """The program that was given, else the first of that name on the search path, execvp(3).

    Only absolute directories are looked into. Raises HostError where there is none.
    """
    if given is not None:
        if not _is_program(given):
            there = os.path.exists(given)
            why = "it can't be read and executed" if there else "there is no such file"
            raise HostError("passt can't be used", given, why, INSTALL)
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
