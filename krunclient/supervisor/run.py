"""Claims what the VM needs, forks the children, and watches the VMM to its end."""

from __future__ import annotations

import gc
import os

from krunclient import log as events
from krunclient import options
from krunclient.bindings.libc import (
    SFD_NONBLOCK_CLOEXEC,
    SIG_BLOCK,
    SIG_DFL,
    SIGCHLD,
    STOP_SIGNALS,
    SignalSet,
    socket_pair,
)
from krunclient.model import FEW_OPEN_FILES, MORE_OPEN_FILES
from krunclient.sandbox import process
from krunclient.supervisor import (
    children,
    claims,
    mappedport,
    memory,
    presence,
    verdict,
    watch,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from krunclient.bindings.libc import Libc
    from krunclient.log import Log
    from krunclient.plan import Plan
    from krunclient.supervisor.cgroup import Cgroup
    from krunclient.supervisor.children import Child
    from krunclient.supervisor.claims import PortClaim
    from krunclient.supervisor.mappedport import MappedPort
    from krunclient.supervisor.metrics import Metrics
    from krunclient.supervisor.passt import Passt
    from krunclient.supervisor.terminal import Terminal

    Main = Callable[[Plan, Libc, int, tuple[int, ...]], NoReturn]


def run(plan: Plan, libc: Libc, log: Log, parent: int, *, vmm: Main, passt: Main | None) -> int:
    """Run the VM to its end. Returns krunclient's exit status.

    `parent` is the process that started this one; it may be gone. `vmm` and `passt` are what the
    children run, and never return; the latter is None if the guest has no network card.

    Raises LaunchError for what could not be claimed or set up, VmError if the VM ended without
    the app's status.
    """
    signals = _queue_stop_signals(libc)
    _announce_start(plan, log)
    port_claim, overlay_claim = _claim(plan, libc)
    if plan.config.life.die_with_parent:
        process.die_with(libc, parent)  # not before the claims: a change of user undoes it
    memory.hide_values(options.SECRET_NAMES)
    process.forbid_core_dumps(libc)
    at_end: list[Callable[[], None]] = []
    try:
        cgroup = _limited(plan, at_end)
        metrics = _claim_metrics(plan, libc, at_end)
        at_end.append(_Streams().restore)
        terminal = _terminal(plan, libc, at_end)
        given = (plan, libc, cgroup, terminal, overlay_claim)
        child, passt_child = _fork(*given, vmm=vmm, passt=passt)
        process.set_dumpable(libc, False)
        presence.be_found(libc, os.getpid())
        gc.freeze()  # else the first collection would write to all that is shared with the VMM
        gc.enable()
        log.write(events.VMM_STARTED, f"the VMM is process {child.pid}", vmm_pid=child.pid)
        port = mappedport.MappedPort(libc, plan.config.policy, port_claim)
        user_network = _supervised_passt(plan, libc, log, port, passt_child)
        launch = watch.Launch(plan=plan, libc=libc, log=log, port=port, child=child)
        launch = launch.replace(cgroup=cgroup, terminal=terminal, metrics=metrics)
        end = watch.Watch(launch).run(signals, user_network)
        return verdict.status(end, plan.config.files.root_path)
    finally:
        for undo in reversed(at_end):
            undo()


def _fork(
    plan: Plan,
    libc: Libc,
    cgroup: Cgroup | None,
    terminal: Terminal | None,
    overlay_claim: tuple[int, ...],
    *,
    vmm: Main,
    passt: Main | None,
) -> tuple[Child, Child | None]:
    """The VMM, and passt if there is a network card: each in the VM's cgroup, if there is one."""

    def limited(main: Main) -> Callable[[int, tuple[int, ...]], NoReturn]:
        def run(supervisor: int, inherited: tuple[int, ...]) -> NoReturn:
            if cgroup is not None:
                cgroup.enter()
            main(plan, libc, supervisor, inherited)

        return run

    # What the guest's frames go by, from its card to passt.
    wire = socket_pair(libc) if passt is not None else ()
    if terminal is not None:
        terminal.enter()
    try:
        child = children.start(limited(vmm), *wire[:1], *overlay_claim)
        passt_child = None if passt is None else children.start(limited(passt), *wire[1:])
    finally:
        if terminal is not None:
            terminal.leave()
    for descriptor in wire:
        os.close(descriptor)
    return child, passt_child


def _limited(plan: Plan, at_end: list[Callable[[], None]]) -> Cgroup | None:
    if plan.config.limits is None:
        return None
    from krunclient.supervisor.cgroup import Cgroup

    cgroup = Cgroup(plan.config.limits)
    at_end.append(cgroup.remove)
    return cgroup


def _terminal(plan: Plan, libc: Libc, at_end: list[Callable[[], None]]) -> Terminal | None:
    if not plan.facts.terminal:
        return None
    from krunclient.supervisor.terminal import Terminal

    terminal = Terminal(libc)
    at_end.append(terminal.restore)
    return terminal


def _claim_metrics(plan: Plan, libc: Libc, at_end: list[Callable[[], None]]) -> Metrics | None:
    path, config = plan.config.monitoring.metrics, plan.config
    if path is None:
        return None
    from krunclient.supervisor.metrics import Metrics

    labels = {"root": config.files.root_path, "port": str(config.policy.listen.port)}
    metrics = Metrics(path, labels)
    metrics.claim(libc)
    at_end.append(metrics.end)
    return metrics


def _queue_stop_signals(libc: Libc) -> int:
    """Returns the descriptor that they are read from, signalfd(2).

    Blocked signals are queued even if they were ignored at the start, as under nohup.
    """
    stop_signals = SignalSet.of(*STOP_SIGNALS)
    libc.sigprocmask(SIG_BLOCK, stop_signals, None)
    libc.signal(SIGCHLD, SIG_DFL)  # if it were ignored, a child's status would be lost
    return libc.signalfd(-1, stop_signals, SFD_NONBLOCK_CLOEXEC)


def _announce_start(plan: Plan, log: Log) -> None:
    config, pair = plan.config, plan.facts.libraries
    guest = config.guest
    log.write(
        events.START,
        f"{config.files.root_path} on {config.policy.listen.text()}: {guest.vcpus} vCPU,"
        f" {guest.memory_mib} MiB, libkrun {pair.libkrun_origin}, sandbox"
        f" {'strict' if config.sandbox else 'off'}",
        libkrun=pair.libkrun,
        vcpus=guest.vcpus,
        memory_mib=guest.memory_mib,
    )
    if plan.facts.open_files < FEW_OPEN_FILES:
        log.write(
            events.FEW_OPEN_FILES,
            f"at most {plan.facts.open_files} open files, and each file that the guest knows is"
            f" one: {MORE_OPEN_FILES}",
            open_files=plan.facts.open_files,
        )
    processors, available = plan.facts.processors, plan.facts.available_mib
    if guest.vcpus > processors or (available is not None and guest.memory_mib > available):
        log.write(
            events.OVERCOMMITTED,
            f"{guest.vcpus} vCPU and {guest.memory_mib} MiB for the guest, where {processors}"
            f" processors and {'some' if available is None else available} MiB are free: give it"
            " less by --cpus or --memory",
            vcpus=guest.vcpus,
            processors=processors,
            memory_mib=guest.memory_mib,
            available_mib=available,
        )


def _claim(plan: Plan, libc: Libc) -> tuple[PortClaim, tuple[int, ...]]:
    """The port, and the descriptor of the overlay's claim if there is an overlay.

    The VMM child holds the latter too: nobody else may write there before it is gone.
    """
    config = plan.config
    port_claim = claims.claim_port(libc, config.policy.listen)
    if not config.sandbox:
        port_claim.share_with_libkrun()
    if config.files.overlay is None:
        return port_claim, ()
    from krunclient.supervisor import overlay

    return port_claim, (overlay.claim(config.files.overlay, config.user),)


def _supervised_passt(
    plan: Plan, libc: Libc, log: Log, port: MappedPort, child: Child | None
) -> Passt | None:
    if plan.user_network is None or child is None:
        return None
    from krunclient.supervisor.passt import Passt

    return Passt(plan, plan.user_network, libc, log, port, child)


class _Streams:
    """Whether standard input, output and error were blocking at the start: they are shared with
    others, and a VMM changes that.
    """

    def __init__(self) -> None:
        self._blocking = [(number, os.get_blocking(number)) for number in (0, 1, 2)]

    def restore(self) -> None:
        for number, blocking in self._blocking:
            os.set_blocking(number, blocking)
