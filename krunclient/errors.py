"""What can go wrong, and the exit status that says so.

    LaunchError
    ├── UsageError              64  arguments, options, environment values
    ├── RootError               66  ROOT_PATH holds no runnable program
    ├── HostError               69  this host lacks something
    ├── VmError                 70  the VM could not be created, or ended without a status
    ├── BusyError               75  something is taken; worth another try
    └── PermissionDeniedError   77  permission denied

The numbers are those of sysexits.h.
"""

from __future__ import annotations

import os


class LaunchError(Exception):
    """A failure that is told to the user in one line.

    The line reads `WHAT FAILED: ON WHICH THING: WHY; WHAT TO DO`. None of the four parts may
    hold a secret.
    """

    status = 70

    def __init__(self, what: str, thing: str, why: str, remedy: str) -> None:
        super().__init__(what, thing, why, remedy)
        self.what = what
        self.thing = thing
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.thing}: {self.why}; {self.remedy}"


def reason(error: OSError) -> str:
    """The text of an errno, to stand as the WHY of a LaunchError."""
    return os.strerror(error.errno or 0).lower()


class UsageError(LaunchError):
    status = 64


class RootError(LaunchError):
    status = 66


class HostError(LaunchError):
    status = 69


class VmError(LaunchError):
    status = 70


class BusyError(LaunchError):
    status = 75


class PermissionDeniedError(LaunchError):
    status = 77


ERRORS_BY_STATUS = {
    error.status: error
    for error in (UsageError, RootError, HostError, VmError, BusyError, PermissionDeniedError)
}
