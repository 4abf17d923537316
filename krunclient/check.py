"""--check: what this host offers for a VM, a line each, with what to do where it lacks."""

from __future__ import annotations

import os
import re

from krunclient import host, libraries
from krunclient import report as reports
from krunclient.bindings import libkrun
from krunclient.errors import HostError, LaunchError
from krunclient.log import one_line
from krunclient.sandbox import landlock, lifeline, mounts, privileges, seccomp
from krunclient.sandbox.mounts import Files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.bindings.libc import Libc
    from krunclient.config import Config


SAMPLE_ROOT = "/usr"  # a directory that every host has
REMEDY = "see what the kernel's log says"


def report(libc: Libc, config: Config) -> tuple[str, int]:
    """The lines of the report, and the status: 0 when a VM can start, 69 when not."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("architecture", host.find_machine),
        ("kernel", lambda: os.uname().release),
        ("KVM", _kvm),
        ("libkrun", lambda: _libkrun(libc, config)),
        ("libkrunfw", lambda: _libkrunfw(config)),
        ("sandbox", lambda: _sandbox(libc)),
        ("Landlock", lambda: _landlock(libc)),
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


def _sandbox(libc: Libc) -> str:
    """Put the walls around a child, for real, and tell which one could not be had."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _confine(libc, supervisor)
        except LaunchError as error:
            reports.send(writer, error)
        except BaseException as error:
            fields = ("the sandbox can't be made", type(error).__name__, str(error), REMEDY)
            reports.send(writer, HostError(*fields))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        failure = pipe.read()
    os.waitpid(child, 0)
    if failure:
        raise reports.read(failure, SAMPLE_ROOT)
    walls = ["mount namespace", "overlayfs", "seccomp notifications"]
    return ", ".join(["user namespace", *walls] if os.geteuid() else walls)


def _confine(libc: Libc, supervisor: int) -> None:
    files = Files(root_path=SAMPLE_ROOT, overlay=None, overlay_size_mib=1, volumes=())
    # Whether there is a KVM is another check's question.
    steps = tuple(
        step.replace(device=os.devnull) if isinstance(step, mounts.BindDevice) else step
        for step in mounts.operations(files, user_namespace=os.geteuid() != 0, config_file=None)
    )
    privileges.enter_namespaces(libc)
    mounts.perform(libc, steps, mounts.open_sources(steps), b"")
    privileges.drop_capabilities(libc, set_id_bits=False)
    machine = os.uname().machine
    lifeline.start(libc, machine, supervisor)
    seccomp.install(libc, seccomp.assemble(machine, os.getpid(), set_id_bits=False))


def _landlock(libc: Libc) -> str:
    """No Landlock is no failure: it is the second wall."""
    abi = landlock.version(libc)
    return f"ABI {abi}" if abi else "this kernel has none; the sandbox stands without it"


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
