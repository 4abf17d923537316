"""Everything that builds, checks, tests and shows krunclient.

Run by `dist-scripts/nox`, which needs nothing but Python; `dist-scripts/nox --list` names the
sessions. Each installs what it needs at pinned versions, by hash.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["packages", "lint", "types", "tests", "vm", "aarch64"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

SOURCES = ("krunclient", "dist-scripts", "tests", "noxfile.py")
# How the kernel shares ports is its own matter, and guests run on a KVM that works: the claim and
# the guest of a few instructions are tried on the hosts as well.
VM_TESTS = ("tests/vm", "tests/unit/supervisor/test_claims.py")
VM_TESTS_BY_ARCHITECTURE = {"x86_64": ("tests/unit/host/test_vcpu.py",), "aarch64": ()}
# Statuses, an answer, what the VMM can reach, and what it could do if the guest had taken it over.
SHORT_VM_TESTS = (
    "tests/vm/test_status.py",
    "tests/vm/test_serving.py::test_busybox_httpd_answers_twenty_requests_in_a_row",
    "tests/vm/test_confinement.py",
    "tests/vm/test_taken_over.py",
)
VM_TEST_SECONDS = 400  # for what takes some, on a host that is emulated and busy with other things
VM_SECONDS = 4000
SOAK_SECONDS = 6 * 3600
ARTEFACTS = Path("build/artefacts")
BENCH_SECONDS = 3600
BENCH_RESULTS = ARTEFACTS / "host-1/bench.json"


# dist-scripts holds scripts, not a package.
TOP = Path(__file__).parent.resolve()
PYTHONPATH = {"PYTHONPATH": f"{TOP}:{TOP / 'dist-scripts'}"}


def install(session: nox.Session, name: str) -> None:
    lock = f"dist-scripts/requirements/{name}.txt"
    session.install("--quiet", "--require-hashes", "--requirement", lock)
    session.env.update(PYTHONPATH)


@nox.session(venv_backend="none")
def packages(session: nox.Session) -> None:
    """Install the Debian packages that the tests need, where they are missing."""
    purposes = ["compiler", "languages", "managers", "counts"]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        purposes.append("emulated-host")  # else that is seen when a guest has been tried
    session.run(sys.executable, "dist-scripts/debian.py", *purposes, env=PYTHONPATH, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and form with ruff."""
    install(session, "lint")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def fix(session: nox.Session) -> None:
    """Mend style and form where ruff can."""
    install(session, "lint")
    session.run("ruff", "check", "--fix", *SOURCES)
    session.run("ruff", "format", *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy --strict."""
    install(session, "types")
    session.run("mypy", *SOURCES)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests that need no VM. Arguments after -- go to pytest."""
    install(session, "tests")
    prepare(session, build_executable, build_rootfs, build_guests)
    everything = ("tests", "--ignore=tests/vm")
    session.run("pytest", *(session.posargs or everything))


@nox.session
def vm(session: nox.Session) -> None:
    """Run the end-to-end tests on real microVMs. What follows -- goes to pytest.

    With --arch A, or --kernel SUITE, on an emulated host of that architecture, or with the kernel
    of that suite of Debian's.
    """
    install(session, "vm")
    for words in each_target(session, on_hosts=True):
        prepare(session, build_executable, build_rootfs, build_guests, build_apps)
        whole = (*VM_TESTS, *VM_TESTS_BY_ARCHITECTURE[session.env["TARGET_MACHINE"] or ""])
        run_vm_tests(session, *(words or whole), split=not words)


@nox.session
def aarch64(session: nox.Session) -> None:
    """Run a short set of the end-to-end tests on an emulated aarch64 host."""
    install(session, "vm")
    session.env["TARGET_MACHINE"] = "aarch64"
    prepare(session, build_executable, build_rootfs, build_guests)
    run_vm_tests(session, *SHORT_VM_TESTS, split=True)


@nox.session
def build(session: nox.Session) -> None:
    """Build the executable: -- --arch A, for another machine than this, or --arch A --arch B."""
    install(session, "build")
    for words in each_target(session):
        build_executable(session, *words)


@nox.session(venv_backend="none")
def rootfs(session: nox.Session) -> None:
    """Assemble the guest's root file system in build: -- --arch A, for another than this one."""
    for _ in each_target(session):
        build_rootfs(session)


@nox.session(venv_backend="none")
def manual(session: nox.Session) -> None:
    """Write krunclient(1) and bash's completion into build/manual."""
    session.run(sys.executable, "dist-scripts/manual.py", env=PYTHONPATH, external=True)


@nox.session
def distribute(session: nox.Session) -> None:
    """Copy the root file system into the app directories named after --, or into all of them.

    With -- --package DIRECTORY, make a directory that NexusHub zips; for another machine, --arch A.
    """
    session.env.update(PYTHONPATH)
    for words in each_target(session):
        if any(word.partition("=")[0] == "--package" for word in words):
            install(session, "build")
            build_executable(session)
        build_rootfs(session)
        session.run("python", "dist-scripts/distribute.py", *words)


@nox.session
def app(session: nox.Session) -> None:
    """Make an app directory: -- SOURCE DIRECTORY, a program or an OCI image; --arch A."""
    install(session, "build")
    for words in each_target(session):
        build_rootfs(session)
        session.run("python", "dist-scripts/app.py", *words)


@nox.session
def demo(session: nox.Session) -> None:
    """From nothing to an HTTP answer out of a real microVM."""
    install(session, "demo")
    for _ in each_target(session, on_hosts=True):
        prepare(session, build_executable, build_rootfs)
        session.run("python", "-m", "tests.demo.demo", "prepare")
        on_a_host_with_kvm(session, "python", "-m", "tests.demo.demo", "run")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure beside a launcher in C: a table, JSON, a plot. -- --short, --no-vm, --clients."""
    install(session, "bench")
    prepare(session, build_executable, build_rootfs, build_guests)
    command = ("python", "-m", "tests.bench.bench")
    session.run(*command, "--prepare")
    BENCH_RESULTS.unlink(missing_ok=True)
    arguments = (f"--json={BENCH_RESULTS}", *session.posargs)
    on_a_host_with_kvm(session, *command, *arguments, seconds=BENCH_SECONDS)
    session.run(*command, f"--read={BENCH_RESULTS}", "--plot=build/bench.svg")


@nox.session
def soak(session: nox.Session) -> None:
    """Many launches, counted: -- --launches N --parallel P, and --recorder without VMs."""
    install(session, "vm")
    prepare(session, build_executable, build_rootfs, build_guests)
    command = ("python", "-m", "tests.soak.soak")
    if "--recorder" in session.posargs:
        session.run(*command, *session.posargs)
        return
    for old in ARTEFACTS.glob("host-*/soak.json"):
        old.unlink()
    on_a_host_with_kvm(session, *command, *session.posargs, split=True, seconds=SOAK_SECONDS)
    session.run(*command, "--combine", *map(str, ARTEFACTS.glob("host-*/soak.json")))


def each_target(session: nox.Session, on_hosts: bool = False) -> Iterator[list[str]]:
    """For each architecture that the arguments name by --arch, or this machine's, their rest.

    Meanwhile the steps of the session build for that one, and test on it: where hosts may be
    emulated, with the kernel that --kernel names. What goes to one place is for one architecture.
    """
    parser = argparse.ArgumentParser(
        f"nox -s {session.name} --", allow_abbrev=False, add_help=False
    )
    parser.add_argument("--arch", action="append", choices=("x86_64", "aarch64"), default=[])
    if on_hosts:
        parser.add_argument("--kernel")
    arguments, rest = parser.parse_known_args(session.posargs)
    if len(arguments.arch) > 1 and rest:
        session.error(f"with {' '.join(rest)}, name one --arch")
    if on_hosts and arguments.kernel:
        session.env["HOST_KERNEL"] = arguments.kernel
    for machine in arguments.arch or [platform.machine()]:
        session.env["TARGET_MACHINE"] = machine
        yield rest


def prepare(session: nox.Session, *steps: object) -> None:
    for step in steps:
        step(session)  # type: ignore[operator]


def build_executable(session: nox.Session, *arguments: str) -> None:
    session.run("python", "dist-scripts/build.py", *arguments)


def build_rootfs(session: nox.Session) -> None:
    session.run(sys.executable, "dist-scripts/rootfs.py", env=PYTHONPATH, external=True)


def build_guests(session: nox.Session) -> None:
    session.run("python", "-m", "tests.framework.guests")


def build_apps(session: nox.Session) -> None:
    """The app directories that guests boot, and the scheduler that places some."""
    session.run("python", "-m", "tests.demo.demo", "prepare")
    session.run("python", "-m", "tests.framework.languages")
    session.run("python", "-m", "tests.framework.scheduler")


def run_vm_tests(session: nox.Session, *tests: str, split: bool) -> None:
    command = ("python", "-m", "pytest", "-p", "no:cacheprovider", "-v")
    on_a_host_with_kvm(
        session,
        *command,
        f"--timeout={VM_TEST_SECONDS}",
        "--durations=0",  # what durations.json is made of
        "--durations-path=tests/vm/durations.json",
        *tests,
        split=split,
    )


def on_a_host_with_kvm(
    session: nox.Session, *command: str, split: bool = False, seconds: int = VM_SECONDS
) -> None:
    """On this host where its KVM runs guests, else on an emulated one, or several."""
    options = [f"--timeout={seconds}", *(["--split"] if split else [])]
    session.run("python", "-m", "tests.framework.hosts", *options, "--", *command)
