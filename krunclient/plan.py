"""Config and HostFacts to Plan: all that will be done, as data. `--plan` prints it."""

from __future__ import annotations

from krunclient.record import Record
from krunclient.sandbox.policy import Policy
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from krunclient.address import Endpoint
    from krunclient.config import Config
    from krunclient.host import HostFacts
    from krunclient.libraries import LibraryPair
    from krunclient.sandbox.mounts import Files
    from krunclient.sandbox.privileges import User


class Plan(Record):
    """One VM. `egress_cidrs` is what libkrun's own egress policy, where it has one, allows.

    `host_port` is what libkrun is told; with the sandbox it is the guest's own port, which the
    supervisor turns into `policy.listen`.
    """

    machine: str
    files: Files
    libraries: LibraryPair
    vcpus: int
    memory_mib: int
    exec_path: str
    app_arguments: tuple[str, ...]
    variables: tuple[tuple[str, Secret], ...]
    host_port: int
    guest_port: int
    policy: Policy
    egress_cidrs: tuple[str, ...]
    user: User | None
    sandbox: bool
    console: bool
    grace_period: float
    ready_timeout: float | None
    die_with_parent: bool
    notify_socket: str

    @property
    def root_path(self) -> str:
        return self.files.root_path


def make(config: Config, facts: HostFacts) -> Plan:
    return Plan(
        machine=facts.machine,
        files=config.files,
        libraries=facts.libraries,
        vcpus=config.cpus,
        memory_mib=config.memory_mib,
        exec_path=config.exec_path,
        app_arguments=config.app_arguments,
        variables=config.variables,
        host_port=config.guest_port if config.sandbox else config.listen.port,
        guest_port=config.guest_port,
        policy=Policy(guest_port=config.guest_port, listen=config.listen, allow=config.allow),
        egress_cidrs=tuple(dict.fromkeys(_cidr(endpoint) for endpoint in config.allow)),
        user=config.user,
        sandbox=config.sandbox,
        console=config.console,
        grace_period=config.grace_period,
        ready_timeout=config.ready_timeout,
        die_with_parent=config.die_with_parent,
        notify_socket=config.notify_socket,
    )


def _cidr(endpoint: Endpoint) -> str:
    address = endpoint.text().rpartition(":")[0].strip("[]")
    return f"{address}/{8 * len(endpoint.packed)}"


def as_json(plan: Plan, generation: str) -> str:
    """The plan as one JSON object, each secret as `***`. `generation` is that of libkrun's API."""
    # A launch does not print its plan and need not pay for these imports.
    import json

    from krunclient.sandbox import mounts

    document = {"root_path": plan.root_path, **plan.as_dict()}
    document["libraries"] = {**plan.libraries.as_dict(), "api": generation}
    document["variables"] = dict(plan.variables)
    document["policy"] = {
        "listen": plan.policy.listen.text(),
        "allow": [endpoint.text() for endpoint in plan.policy.allow],
    }
    if plan.sandbox:
        steps = mounts.operations(plan.files, user_namespace=True, config_file=None)
        document["mounts"] = [step.describe() for step in steps]
    return json.dumps(document, indent=2, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return repr(value)
    if isinstance(value, Record):
        return value.as_dict()
    raise TypeError(f"a plan can't hold a {type(value).__name__}")
