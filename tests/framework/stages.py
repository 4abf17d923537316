"""A launch up to each of its stages, as values: no host is asked for anything."""

from __future__ import annotations

from collections.abc import Mapping

from krunclient import cli, config, plan
from krunclient.bindings import libc
from krunclient.bindings.arch import ARCHITECTURES
from krunclient.cli import Options
from krunclient.config import Config
from krunclient.host.facts import HostFacts, find_architecture
from krunclient.model import BOUNDED, Features, LibraryPair
from krunclient.plan import Plan
from target import ARCHITECTURE

LIBC = libc.load(find_architecture())
(OTHER_ARCHITECTURE,) = (one for one in ARCHITECTURES.values() if one is not ARCHITECTURE)
NO_LIMITS = dict.fromkeys(BOUNDED, 2**64 - 1)  # RLIM_INFINITY
ROOT, PORT = "/srv/app", 30000

# What the generations of libkrun have, by their headers.
V1_13 = Features.of(lambda name: name == "krun_set_root")
V1_19 = Features.of(lambda name: name != "krun_set_egress_policy")
V2 = Features.of(lambda name: "implicit" not in name and name != "krun_set_root")


def options(*argv: str | bytes, env: Mapping[bytes, bytes] | None = None) -> Options:
    words = [word if isinstance(word, bytes) else word.encode() for word in argv]
    return cli.parse(words, env or {})


def settings(
    *argv: str | bytes,
    env: Mapping[bytes, bytes] | None = None,
    root: str | bytes = ROOT,
    port: str | bytes = str(PORT),
) -> Config:
    return config.resolve(LIBC, options(root, port, *argv, env=env))


def facts(
    features: Features = V2,
    vmm_uid: int = 1000,
    landlock_abi: int = 6,
    machine: str = "x86_64",
    hard_limits: Mapping[str, int] | None = None,
    open_files: int = 2**20,
    processors: int = 255,
    available_mib: int = 2**20,
) -> HostFacts:
    pair = LibraryPair(
        libkrun="/a",
        libkrunfw="/b",
        libkrun_origin="given",
        libkrunfw_origin="given",
        features=features,
        init="Rust" if features is V2 else "C",
    )
    return HostFacts(
        architecture=ARCHITECTURES[machine],
        exec_path="/bin/app",
        libraries=pair,
        vmm_uid=vmm_uid,
        landlock_abi=landlock_abi,
        hard_limits=hard_limits or NO_LIMITS,
        open_files=open_files,
        processors=processors,
        available_mib=available_mib,
    )


def planned(
    *argv: str | bytes,
    env: Mapping[bytes, bytes] | None = None,
    of: HostFacts | None = None,
) -> Plan:
    return plan.make(settings(*argv, env=env), of or facts())
