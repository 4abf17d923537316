"""The VMM child's last steps: the plan becomes calls of libkrun, and the guest starts."""

from __future__ import annotations

import os

from krunclient import initconfig, vmmlog
from krunclient.bindings import libkrun
from krunclient.bindings.libkrun import Context, Krun, KrunError
from krunclient.errors import HostError, VmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.plan import Plan


def start(
    plan: Plan, libc: Libc, krun: Krun, config: bytes, root: str, log_descriptor: int
) -> None:
    """Start the guest. Returns only by an exception; else the process ends with its status.

    `config` is the file for libkrun's init, `root` the directory that is the guest's root.
    libkrun's log goes to `log_descriptor`. Raises VmError where libkrun refuses, HostError where
    it can't keep a promise that nothing else keeps.
    """
    # libkrun and what it loads take settings from variables, and must find none of the caller's.
    libc.clearenv()
    try:
        _init_log(plan, libc, krun, log_descriptor)
        context = Context(krun)
        context.set_vm_config(plan.vcpus, plan.memory_mib)
        _set_root(krun, context, config, root, plan)
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


def _init_log(plan: Plan, libc: Libc, krun: Krun, descriptor: int) -> None:
    """Before 1.13 the log can go to stderr alone, which is the guest's."""
    if krun.has("krun_init_log"):
        libc.setenv(b"RUST_LOG", vmmlog.FILTER, 1)
        krun.krun_init_log(descriptor, libkrun.LOG_LEVEL_ERROR, libkrun.LOG_STYLE_NEVER, 0)
    else:
        level = libkrun.LOG_LEVEL_ERROR if plan.console else libkrun.LOG_LEVEL_OFF
        krun.krun_set_log_level(level)


def _set_root(krun: Krun, context: Context, config: bytes, root: str, plan: Plan) -> None:
    """Without a sandbox, ROOT_PATH itself is the guest's root, and only libkrun can keep it whole.

    With one, the configuration file is in the root already where libkrun can't serve it.
    """
    in_memory = krun.has("krun_fs_add_overlay_file")
    if not plan.sandbox and not in_memory:
        raise HostError(
            "the guest can't be run without a sandbox",
            plan.libraries.libkrun,
            "it has no function krun_fs_add_overlay_file",
            "use --sandbox strict, or libkrun 1.19 or later",
        )
    context.set_root(os.fsencode(root), read_only=not plan.sandbox)
    if in_memory:
        context.add_file(initconfig.PATH, config)
