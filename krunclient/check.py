"""--check: what this host offers for a VM, a line each, with what to do where it lacks."""

from __future__ import annotations

import os
import re

from krunclient import host, libraries
from krunclient.bindings import libkrun
from krunclient.errors import HostError, LaunchError
from krunclient.log import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.config import Config


def report(libc: Libc, config: Config) -> tuple[str, int]:
    """The lines of the report, and the status: 0 when a VM can start, 69 when not."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("architecture", host.find_machine),
        ("kernel", lambda: os.uname().release),
        ("KVM", _kvm),
        ("libkrun", lambda: _libkrun(libc, config)),
        ("libkrunfw", lambda: _libkrunfw(config)),
    )
    lines = []
    status = 0
    for name, check in checks:
        try:
            lines.append(f"ok       {name}: {check()}")
        except LaunchError as error:
            lines.append(f"missing  {name}: {error.thing}: {error.why}; {error.remedy}")
            status = HostError.status
    lines.append("a VM can start" if status == 0 else "no VM can start")
    return "\n".join(one_line(line) for line in lines), status


def _kvm() -> str:
    host.check_kvm()
    return f"{host.KVM}, API version {host.KVM_API_VERSION}"


def _libkrun(libc: Libc, config: Config) -> str:
    pair = libraries.find(config.libkrun, config.libkrunfw, host.find_machine())
    krun = libkrun.load(libc, pair.libkrun, pair.libkrunfw)
    return f"{pair.libkrun} ({pair.origin}), API {krun.generation}"


def _libkrunfw(config: Config) -> str:
    pair = libraries.find(config.libkrun, config.libkrunfw, host.find_machine())
    with open(pair.libkrunfw, "rb") as file:
        found = re.search(rb"Linux version (\S+)", file.read())
    kernel = found[1].decode("utf-8", "replace") if found else "of an unknown version"
    return f"{pair.libkrunfw} ({pair.origin}), Linux {kernel}"
