"""Config and HostFacts to Plan: all that will be done, as data. `--plan` prints it."""

from __future__ import annotations

from krunclient.errors import HostError
from krunclient.model import INIT_FILE
from krunclient.record import Record
from krunclient.sandbox import confinement
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from krunclient.config import Config
    from krunclient.host.facts import HostFacts
    from krunclient.model import LibraryPair
    from krunclient.sandbox.confinement import Confinement


SET_ROOT_WINDOW_MIB = 512  # krun_set_root maps this much for DAX, private to the process


class Plan(Record):
    """One VM. `confinement` is None with `--sandbox off`.

    `host_port` is what libkrun is told to map. With the sandbox it is the guest's own port, which
    the supervisor turns into the policy's; so a bind of the VMM's to that number is the guest's
    own listener and no other. `egress_cidrs` is what libkrun's own policy, if it has one, allows.
    """

    config: Config
    facts: HostFacts
    confinement: Confinement | None
    host_port: int
    egress_cidrs: tuple[str, ...]


def make(config: Config, facts: HostFacts) -> Plan:
    """Raises HostError if a promise depends on a function that this libkrun lacks."""
    check_that_root_stays_whole(config, facts.libraries)
    policy = config.policy
    return Plan(
        config=config,
        facts=facts,
        confinement=_confinement(config, facts) if config.sandbox else None,
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


def _confinement(config: Config, facts: HostFacts) -> Confinement:
    in_memory = facts.libraries.features.krun_fs_add_overlay_file
    return confinement.make(
        config.guest,
        config.files,
        user=config.user,
        vmm_uid=facts.vmm_uid,
        landlock_abi=facts.landlock_abi,
        hard_limits=facts.hard_limits,
        window_mib=0 if facts.libraries.features.krun_add_virtiofs3 else SET_ROOT_WINDOW_MIB,
        init_file=None if in_memory else INIT_FILE,
    )


def as_json(plan: Plan) -> str:
    """The plan as one JSON object, each secret as `***`."""
    # A launch does not print its plan and need not pay for this import.
    import json

    config, facts = plan.config, plan.facts
    pair = facts.libraries
    document = {
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
        "user": config.user,
        "sandbox": config.sandbox,
        "confinement": plan.confinement and _described(plan.confinement),
        "console": config.console,
        **config.life.as_dict(),
    }
    return json.dumps(document, indent=2, default=_plain)


def _described(value: Confinement) -> dict[str, Any]:
    return {**value.as_dict(), "mounts": [step.describe() for step in value.mounts]}


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return repr(value)
    if isinstance(value, Record):
        return value.as_dict()
    raise TypeError(f"a plan can't hold a {type(value).__name__}")
