"""Config and HostFacts to Plan: all that will be done, as data. `--plan` prints it."""

from __future__ import annotations

from krunclient.errors import HostError
from krunclient.model import INIT_FILE, ip_text
from krunclient.record import Record
from krunclient.sandbox import confinement
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from krunclient.config import Config
    from krunclient.host.facts import HostFacts
    from krunclient.model import LibraryPair
    from krunclient.sandbox.confinement import Confinement
    from krunclient.usernet import UserNetwork


SET_ROOT_WINDOW_MIB = 512  # krun_set_root maps this much for DAX, private to the process


class Plan(Record):
    """One VM. `confinement` is None with `--sandbox off`, `user_network` without `--network passt`.

    `host_port` is what libkrun is told to map. With the sandbox it is the guest's own port, which
    the supervisor turns into the policy's; so a bind of the VMM's to that number is the guest's
    own listener and no other. `egress_cidrs` is what libkrun's own policy, if it has one, allows.
    """

    config: Config
    facts: HostFacts
    confinement: Confinement | None
    user_network: UserNetwork | None
    host_port: int
    egress_cidrs: tuple[str, ...]


def make(config: Config, facts: HostFacts) -> Plan:
    """Raises HostError if a promise depends on a function that this libkrun lacks."""
    check_that_root_stays_whole(config, facts.libraries)
    policy, network = config.policy, _user_network(config, facts)
    return Plan(
        config=config,
        facts=facts,
        confinement=_confinement(config, facts, network) if config.sandbox else None,
        user_network=network,
        host_port=policy.guest_port if config.sandbox else policy.listen.port,
        egress_cidrs=tuple(dict.fromkeys(network.cidr() for network in policy.allow)),
    )


def check_that_root_stays_whole(config: Config, pair: LibraryPair) -> None:
    """Without a sandbox the guest's root is ROOT_PATH, and only libkrun can keep it whole."""
    if not config.sandbox and not pair.features.krun_fs_add_overlay_file:
        raise HostError(
            "the guest can't be run without a sandbox",
            pair.libkrun,
            "it has no function krun_fs_add_overlay_file",
            "use --sandbox strict, or libkrun 1.19 or later",
        )


def _user_network(config: Config, facts: HostFacts) -> UserNetwork | None:
    if facts.passt is None:
        return None
    from krunclient import usernet

    return usernet.make(config, facts.passt)


def _confinement(config: Config, facts: HostFacts, network: UserNetwork | None) -> Confinement:
    in_memory = facts.libraries.features.krun_fs_add_overlay_file
    files, program = config.files, None
    if network is not None:
        files = files.replace(hosts=network.names)
        program = (network.guest_program, network.program)
    return confinement.make(
        config.guest,
        files,
        user=config.user,
        vmm_uid=facts.vmm_uid,
        landlock_abi=facts.landlock_abi,
        hard_limits=facts.hard_limits,
        window_mib=0 if facts.libraries.features.krun_add_virtiofs3 else SET_ROOT_WINDOW_MIB,
        init_file=None if in_memory else INIT_FILE,
        guest_program=program,
    )


def as_json(plan: Plan, origins: Mapping[str, str]) -> str:
    """The plan as one JSON object, each secret as `***`. `origins` tells where each option's value
    comes from.
    """
    # A launch does not print its plan and need not pay for this import.
    import json

    config, facts = plan.config, plan.facts
    pair = facts.libraries
    document = {
        "origins": origins,
        "root_path": config.files.root_path,
        "machine": facts.architecture.machine,
        "libraries": {**pair.as_dict(), "api": pair.features.generation},
        **config.guest.as_dict(),
        "exec_path": facts.exec_path,
        "variables": dict(config.guest.variables),
        "files": config.files,
        "open_files": facts.open_files,
        "guest_port": config.policy.guest_port,
        "host_port": plan.host_port,
        "policy": {
            "listen": config.policy.listen.text(),
            "allow": [network.text() for network in config.policy.allow],
            "client_timeout": config.policy.client_timeout,
        },
        "egress_cidrs": plan.egress_cidrs,
        "network": config.network,
        "user_network": plan.user_network and _network(plan.user_network),
        "limits": config.limits,
        "user": config.user,
        "sandbox": config.sandbox,
        "confinement": plan.confinement and _described(plan.confinement),
        "console": config.console,
        "interactive": facts.terminal,
        **config.life.as_dict(),
        **config.monitoring.as_dict(),
    }
    return json.dumps(document, indent=2, default=_plain)


def _described(value: Confinement) -> dict[str, Any]:
    return {**value.as_dict(), "mounts": [step.describe() for step in value.mounts]}


def _network(value: UserNetwork) -> dict[str, Any]:
    stand_ins = {ip_text(packed): ip_text(other) for packed, other in value.stand_ins.items()}
    return {**value.as_dict(), "stand_ins": stand_ins}


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return repr(value)
    if isinstance(value, Record):
        return value.as_dict()
    raise TypeError(f"a plan can't hold a {type(value).__name__}")
