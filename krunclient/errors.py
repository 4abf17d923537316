"""What can go wrong: one class an exit status, and the rule from a failed call to its class.

    LaunchError
    ├── UsageError              64  arguments, options, environment values
    ├── RootPathError           66  ROOT_PATH holds no runnable program
    ├── HostError               69  this host lacks something
    ├── VmError                 70  the VM could not be created, or ended without a status
    ├── BusyError               75  something is taken; worth another try
    └── PermissionDeniedError   77  permission denied

The numbers are those of sysexits.h.
"""

from __future__ import annotations

import errno
import os

# Errnos of what runs out: of processes and threads, descriptors, memory.
LIMITS = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
SEE_LIMITS = "see which limit has been reached, by ulimit -a and the kernel's log"
SEE_CHECK = "see what this host lacks by krunclient --check"


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


class RootPathError(LaunchError):
    status = 66


class HostError(LaunchError):
    status = 69


class VmError(LaunchError):
    status = 70


class BusyError(LaunchError):
    status = 75


class PermissionDeniedError(LaunchError):
    status = 77


def by_name() -> dict[str, type[LaunchError]]:
    """Every kind of LaunchError by the name of its class."""
    kinds = [LaunchError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return {kind.__name__: kind for kind in kinds}


def failed_call(
    what: str, thing: str, error: OSError, remedy: str, otherwise: type[LaunchError] = HostError
) -> LaunchError:
    """The error for a call to the kernel that failed: 70 if a limit has been reached, whatever the
    call; else `otherwise`, by itself 69, this host lacks something, and `remedy` says what to do.
    """
    if error.errno in LIMITS:
        return VmError(what, thing, reason(error), SEE_LIMITS)
    return otherwise(what, thing, reason(error), remedy)


def foreign_terminal(stream: str, error: OSError) -> LaunchError:
    """The error for a terminal of another user's, which can't be opened anew."""
    return PermissionDeniedError(
        "the guest's output can't be shown",
        stream,
        f"{reason(error)}: it is a terminal of another user",
        "redirect it, through a pipe to cat, say",
    )


def unexpected(error: BaseException) -> LaunchError:
    """The error for an exception that nobody expected, the same in each process."""
    if isinstance(error, LaunchError):
        return error
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)).with_traceback(error.__traceback__)
    if isinstance(error, OSError):
        return failed_call("the VM could not be created", _call(error), error, SEE_CHECK)
    if isinstance(error, ImportError) and (error.path or "").endswith(".so"):
        # A part of Python that is imported late, and the dynamic loader's words for what it lacks.
        path, _, why = str(error).partition(": ")
        return VmError("krunclient can't be loaded", path, why, SEE_LIMITS)
    if isinstance(error, ImportError) and error.path and error.path.endswith("/later"):
        # The file of our own code that is not imported at the start, krunclient.zipapp.loader.
        why, remedy = "it is damaged or gone", "start it again: then it is made anew"
        return VmError("krunclient can't be loaded", error.path, why, remedy)
    # Its message could quote a value: its type alone is told.
    return VmError(
        "krunclient failed",
        type(error).__name__,
        f"an unexpected error at {_place(error)}",
        "this is a fault of krunclient: please report it",
    )


def _call(error: OSError) -> str:
    """The function that failed, which the bindings put before its errno's text; else the file that
    it was about, or the place.
    """
    name, colon, _ = (error.strerror or "").partition(": ")
    if colon:
        return name
    return os.fsdecode(error.filename) if error.filename else _place(error)


def _place(error: BaseException) -> str:
    """Where in krunclient it was raised: the last of its lines that led there."""
    place = "an unknown place"
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("krunclient"):
            place = f"{module}.{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
