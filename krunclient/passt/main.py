"""The passt child's steps in their order: user, namespace, walls, and then passt itself.

passt confines itself as well, before it reads the guest's first frame: it goes into namespaces of
its own with an empty file system, drops its capabilities, and installs a filter that lets through
what it needs (its isolation.c). What it does not do is bound where it connects to and what it
listens on; that is the supervisor's, by the filter that it gets here.
"""

from __future__ import annotations

import os

from krunclient import report
from krunclient.bindings.libc import CLOSE_RANGE_CLOEXEC, PR_SET_NO_NEW_PRIVS
from krunclient.errors import VmError, failed_call, unexpected
from krunclient.sandbox import landlock, privileges, process, seccomp
from krunclient.sandbox.confine import Supervisor, wait_for_supervision

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from krunclient.bindings.libc import Libc
    from krunclient.plan import Plan
    from krunclient.usernet import UserNetwork

MAX_DATA_BYTES = 2**28  # its tables take about 16 MB


def main(plan: Plan, libc: Libc, supervisor: int, inherited: tuple[int, ...]) -> NoReturn:
    """Never returns. An error goes to the supervisor, which alone speaks to the user."""
    log, report_to, go, tap = inherited
    try:
        if plan.user_network is not None:
            supervised_by = Supervisor(pid=supervisor, report=report_to, go=go)
            run(plan, plan.user_network, libc, supervised_by, log, tap)
    except BaseException as error:
        report.send_error(report_to, unexpected(error))
    finally:
        os._exit(VmError.status)


def run(
    plan: Plan, network: UserNetwork, libc: Libc, supervisor: Supervisor, log: int, tap: int
) -> None:
    """Raises LaunchError or OSError. The stop signals stay blocked in passt: it is to serve the app
    until that has ended.
    """
    process.die_with(libc, supervisor.pid)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, descriptor in enumerate((nothing, nothing, log)):
        os.dup2(descriptor, number)
    process.set_limit(libc, "RLIMIT_NOFILE", plan.facts.open_files)
    limit = min(MAX_DATA_BYTES, plan.facts.hard_limits["RLIMIT_DATA"])
    process.set_limit(libc, "RLIMIT_DATA", limit)
    if network.user is not None:
        privileges.enter_namespaces_as(libc, network.user)
    else:
        # One that can't be dumped could not write its own uid_map.
        process.set_dumpable(libc, True)
        privileges.enter_namespaces(libc, user_namespace=True)
    process.die_with(libc, supervisor.pid)  # a change of user or of namespace has undone it
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock.restrict_sockets(libc, plan.facts.landlock_abi)
    program = seccomp.assemble_for_passt(
        plan.facts.architecture, os.getpid(), is_dumpable=network.user is None
    )
    wait_for_supervision(libc, program, supervisor)
    # All of it, what krunclient was started with among it, but for 0 to 2 and the guest's card.
    libc.close_range(3, 2**32 - 1, CLOSE_RANGE_CLOEXEC)
    os.set_inheritable(tap, True)
    try:
        os.execve(network.passt, network.passt_arguments(plan.config.policy, tap), {})
    except OSError as error:
        remedy = "check who may use it, or name another by --passt"
        raise failed_call("passt can't be used", network.passt, error, remedy) from None
