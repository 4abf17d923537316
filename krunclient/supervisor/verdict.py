"""How a VMM ended, as data, and what follows from it: a status or an error. Nothing here acts."""

from __future__ import annotations

import _signal  # built in; `signal` is not, and brings in `enum`
import os

from krunclient.errors import SEE_LIMITS, BusyError, VmError
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.errors import LaunchError
    from krunclient.plan import Plan


class End(Record):
    """`wait_status` is the VMM's, wait(2). `was_set_up` tells whether it had put its walls up, and
    went on to make the VM.

    `stop_signal` asked for a stop, if any; `forced` tells that the VM was then ended by force.
    `failure` is the error that ended the VM, `reported` the one that the VMM told of itself.
    `without_status` and `cause` are what libkrun's log tells: that the guest ended without a
    status of the app's, and the likely reason, to be put behind a sentence. `lost_mib` is how much
    the guest had written to memory, None if its writes went elsewhere.
    """

    wait_status: int
    was_set_up: bool
    stop_signal: int | None
    forced: bool
    failure: LaunchError | None
    reported: LaunchError | None
    without_status: bool
    cause: str
    lost_mib: float | None

    @property
    def app_status(self) -> int | None:
        """The status that the app ended with, None if it did not end by itself."""
        if self.forced or os.WIFSIGNALED(self.wait_status) or self.without_status:
            return None
        return os.WEXITSTATUS(self.wait_status)

    @property
    def how(self) -> str:
        if self.forced:
            return "the VM was ended by force"
        if os.WIFSIGNALED(self.wait_status):
            number = os.WTERMSIG(self.wait_status)
            by = ", from a filter of system calls," if number == _signal.SIGSYS else ""
            return f"the VMM was killed by signal {number}{by}"
        if self.without_status:
            return "the guest stopped without the app's status"
        return f"the app ended with status {os.WEXITSTATUS(self.wait_status)}"

    @property
    def had_a_vm(self) -> bool:
        """Whether there was a VM, whose end is worth a record."""
        return self.forced or (self.was_set_up and self.reported is None)


def status(end: End, root_path: str) -> int:
    """krunclient's exit status. Raises LaunchError if there is none of the app's."""
    if end.forced and end.stop_signal is not None:
        return 128 + end.stop_signal
    error = end.failure or end.reported
    if error is not None:
        raise error
    if not end.was_set_up and end.stop_signal is None:
        raise VmError(
            "the VM could not be created",
            root_path,
            f"{end.how} before it was set up"
            if os.WIFSIGNALED(end.wait_status)
            else "the VMM ended before it was set up",
            SEE_LIMITS,
        )
    if end.stop_signal is not None and os.WIFSIGNALED(end.wait_status):
        return 128 + end.stop_signal
    if end.app_status is None:
        raise VmError(
            "the VM has ended",
            root_path,
            f"{end.how}{end.cause}",
            "--console shows libkrun's own log and the guest's kernel log",
        )
    return end.app_status


# Why a VM is ended before it ends by itself


def not_ready(plan: Plan, limit: float) -> LaunchError:
    return VmError(
        "the app is not ready",
        plan.config.files.root_path,
        f"it does not listen on port {plan.config.policy.guest_port} after {limit:g} s",
        "see what it prints, or give it more time by --ready-timeout",
    )


def unhealthy(plan: Plan, why: str) -> LaunchError:
    return VmError(
        "the app is unhealthy",
        plan.config.files.root_path,
        why,
        "see what it prints; --health-action none lets it go on",
    )


def port_is_lost(plan: Plan) -> LaunchError:
    listen, why = plan.config.policy.listen, "another program has taken it"
    return BusyError("LOCAL_PORT can't be used", listen.text(), why, "try again")


def thread_panicked(plan: Plan, message: str) -> LaunchError:
    return VmError(
        "the VM was ended",
        plan.config.files.root_path,
        f"libkrun's {message}",
        "look for file names that are not UTF-8, and at the limit on open files",
    )
