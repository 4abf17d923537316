"""Leaves the VMM child the descriptors that it needs and no others, nor a terminal to read."""

from __future__ import annotations

import os

from krunclient.errors import VmError, foreign_terminal, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

# Beside 0 and 1, which become the guest's. The guest's standard error is a descriptor of its own,
# so that libkrun's can lead to the supervisor. The network card follows if there is one, then the
# overlay's claim.
LOG, REPORT, GO, GUEST_STDERR, CARD = 3, 4, 5, 6, 7


def keep(libc: Libc, log: int, report: int, go: int, others: tuple[int, ...]) -> None:
    """Leave the child 0 to 2 and these, from LOG on, and nothing else. Raises VmError."""
    inherited = [log, report, go, 2, *others]
    places = range(LOG, LOG + len(inherited))
    above = max(*inherited, places[-1]) + 1
    try:
        for position, descriptor in enumerate(inherited):
            if descriptor in places:  # in the way of another
                target = above + position
                inherited[position] = os.dup2(descriptor, target, inheritable=False)
        for target, descriptor in zip(places, inherited, strict=True):
            os.dup2(descriptor, target, inheritable=False)
    except OSError as error:
        raise VmError(
            "the VM could not be created",
            f"descriptor {target}",
            reason(error),
            "allow more open files, by ulimit -n",
        ) from None
    # Above the limit on open files there can be some as well, from when it was higher.
    libc.close_range(places.stop, 2**32 - 1, 0)


def leave_the_terminal() -> None:
    """Keep the keyboard from libkrun: with a terminal to read it can't be asked to type ^C, and a
    guest could not be stopped but by force. Output to a terminal could be read from as well.

    Raises PermissionDeniedError for a terminal of another user's.
    """
    if os.isatty(0):
        os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
    for number in (1, 2):
        if os.isatty(number):
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
            try:
                os.dup2(os.open(f"/proc/self/fd/{number}", flags), number)
            except PermissionError as error:
                stream = "standard output" if number == 1 else "standard error"
                raise foreign_terminal(stream, error) from None


def keep_stderr_for_the_guest() -> None:
    os.dup2(2, GUEST_STDERR, inheritable=False)


def send_stderr_to_the_log() -> None:
    """What libkrun writes to standard error by itself, such as the message of a thread that
    panicked, is the supervisor's to read: beside the app's output nobody would know whose it is.
    """
    os.dup2(LOG, 2)
