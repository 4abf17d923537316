"""Put a confinement into effect, in the VMM child: every wall, in the one order that works.

The order is forced. The namespaces and the mounts need capabilities that are dropped next;
Landlock, the lifeline and the filter need no_new_privs; the filter refuses what the lifeline calls.
"""

from __future__ import annotations

import os

from krunclient import report
from krunclient.errors import VmError, failed_call
from krunclient.record import Record
from krunclient.sandbox import landlock, lifeline, mounts, privileges, process, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunclient.bindings.arch import Architecture
    from krunclient.bindings.libc import Libc
    from krunclient.sandbox.confinement import Confinement
    from krunclient.secret import Secret

GUEST_ROOT = f"/{mounts.GUEST}"


class Supervisor(Record):
    """The child's supervisor: its pid, the pipe that is reported on, and the pipe on which
    it gives leave to go on.
    """

    pid: int
    report: int
    go: int


def confine(
    confinement: Confinement,
    libc: Libc,
    architecture: Architecture,
    supervisor: Supervisor,
    init_file: Secret,
    opened: Mapping[str, int],
) -> str:
    """Put every wall around this process. Returns where the guest's root is now. `opened` are
    descriptors of host paths that the mounts need and its user may not open.

    Raises LaunchError or OSError.
    """
    # A process without privileges that can't be dumped could not write its own uid_map.
    process.set_dumpable(libc, confinement.user_namespace)
    privileges.enter_namespaces(libc, user_namespace=confinement.user_namespace)
    sources = mounts.open_sources(confinement.mounts, opened)
    mounts.perform(libc, confinement.mounts, sources, init_file)
    for descriptor in sources.values():
        os.close(descriptor)
    process.set_dumpable(libc, confinement.is_dumpable)
    for name, value in confinement.limits.items():
        process.set_limit(libc, name, value)
    privileges.drop_capabilities(libc, confinement.capabilities)
    landlock.restrict(libc, confinement.landlock_abi, confinement.landlock_rules)
    lifeline.start(libc, architecture, supervisor.pid)
    program = seccomp.assemble(
        architecture,
        os.getpid(),
        set_id_bits=confinement.set_id_bits,
        sockets=confinement.sockets,
    )
    wait_for_supervision(libc, program, supervisor)
    return GUEST_ROOT


def wait_for_supervision(libc: Libc, program: Sequence[bytes], supervisor: Supervisor) -> None:
    """Install the filter, hand its listener to the supervisor, and keep no hold of it.

    Whoever has the listener decides on the calls that the filter stops: this process must not.
    Raises LaunchError.
    """
    try:
        listener = seccomp.install(libc, program)
    except OSError as error:
        raise failed_call(
            "the sandbox can't be made",
            "a seccomp filter with notifications",
            error,
            "use Linux 5.11 or later with CONFIG_SECCOMP_FILTER",
        ) from None
    report.send_listener(supervisor.report, listener)
    if not os.read(supervisor.go, 1):
        os._exit(VmError.status)  # the supervisor is gone
    os.close(listener)
    os.close(supervisor.go)
