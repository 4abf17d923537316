"""The VMM child's last steps: the plan becomes calls of libkrun, and the guest starts."""

from __future__ import annotations

import os

from krunclient import initconfig
from krunclient.bindings import libkrun
from krunclient.bindings.libkrun import Context, Krun, KrunError
from krunclient.errors import HostError, VmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.plan import Plan

# Says which status a VM ends with: see supervisor.VmmLog. The crate was renamed after 1.x.
LOG_FILTER = b"error,vmm=debug,krun_vmm=debug"


def start(plan: Plan, libc: Libc, log_descriptor: int) -> None:
    """Start the guest. Returns only by an exception; else the process ends with its status.

    libkrun's log goes to `log_descriptor`. Raises HostError for a pair that can't be used,
    UsageError for a value that this libkrun can't carry, VmError where libkrun refuses.
    """
    krun = libkrun.load(libc, plan.libraries.libkrun, plan.libraries.libkrunfw)
    config = initconfig.encode(plan, libkrun.init_dialect(krun))
    # libkrun and what it loads take settings from variables, and must find none of the caller's.
    libc.clearenv()
    libc.setenv(b"RUST_LOG", LOG_FILTER, 1)
    try:
        _init_log(krun, log_descriptor)
        context = Context(krun)
        context.set_vm_config(plan.vcpus, plan.memory_mib)
        context.set_root(os.fsencode(plan.root_path), read_only=False)
        _add_config(krun, context, config, plan)
        context.set_console(0, 1, 2)
        context.set_network(plan.host_port, plan.guest_port, plan.egress_cidrs)
        context.start_enter()
    except KrunError as error:
        raise VmError(
            "the VM could not be created",
            plan.root_path,
            str(error),
            "--console shows libkrun's own log",
        ) from None


def _init_log(krun: Krun, descriptor: int) -> None:
    if krun.has("krun_init_log"):
        krun.krun_init_log(descriptor, libkrun.LOG_LEVEL_ERROR, libkrun.LOG_STYLE_NEVER, 0)
    else:
        krun.krun_set_log_level(libkrun.LOG_LEVEL_ERROR)


def _add_config(krun: Krun, context: Context, config: bytes, plan: Plan) -> None:
    if not krun.has("krun_fs_add_overlay_file"):
        raise HostError(
            "the guest can't be configured",
            plan.libraries.libkrun,
            "it has no function krun_fs_add_overlay_file",
            "use libkrun 1.19 or later, or the bundled one",
        )
    context.add_file(initconfig.PATH, config)
