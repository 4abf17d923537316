"""Config and HostFacts to Plan: all that will be done, as data. `--plan` prints it."""

from __future__ import annotations

from krunclient.record import Record
from krunclient.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from krunclient.config import Config
    from krunclient.host import HostFacts
    from krunclient.libraries import LibraryPair


class Plan(Record):
    """One VM. `egress_cidrs` is what libkrun's own egress policy, where it has one, allows."""

    root_path: str
    libraries: LibraryPair
    vcpus: int
    memory_mib: int
    exec_path: str
    app_arguments: tuple[str, ...]
    variables: tuple[tuple[str, Secret], ...]
    host_port: int
    guest_port: int
    egress_cidrs: tuple[str, ...]
    console: bool


def make(config: Config, facts: HostFacts) -> Plan:
    return Plan(
        root_path=config.root_path,
        libraries=facts.libraries,
        vcpus=config.cpus,
        memory_mib=config.memory_mib,
        exec_path=config.exec_path,
        app_arguments=config.app_arguments,
        variables=config.variables,
        host_port=config.local_port,
        guest_port=config.guest_port,
        egress_cidrs=("127.0.0.1/32",),
        console=config.console,
    )


def as_json(plan: Plan, generation: str) -> str:
    """The plan as one JSON object, each secret as `***`. `generation` is that of libkrun's API."""
    # A launch does not print its plan and need not pay for this import.
    import json

    document = plan.as_dict()
    document["libraries"] = {**plan.libraries.as_dict(), "api": generation}
    document["variables"] = dict(plan.variables)
    return json.dumps(document, indent=2, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, Secret):
        return repr(value)
    raise TypeError(f"a plan can't hold a {type(value).__name__}")
