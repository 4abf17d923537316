"""Whatever fails on the host has a true status and one clear line, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from krunclient.host import facts
from tests.framework import fake_vmm
from tests.framework.launch import Ended, Launcher
from tests.framework.namespaces import UNSHARE
from tests.framework.paths import EXECUTABLE, PYTHONPATH, TOP
from tests.framework.stages import LIBC

PORT = "30781"

# A call, the errno that it fails with, the status, and what the line says. What runs out is 70 in
# either process, and what the host lacks is 69.
LIMIT = "see which limit has been reached, by ulimit -a and the kernel's log"
LACKS = "see what this host lacks by krunclient --check"
IN_THE_SUPERVISOR = [
    ("os.fork", "EAGAIN", 70, f"resource temporarily unavailable; {LIMIT}"),
    ("os.fork", "ENOSYS", 69, f"function not implemented; {LACKS}"),
    ("os.pipe2", "EMFILE", 70, f"too many open files; {LIMIT}"),
    ("os.pidfd_open", "EMFILE", 70, f"too many open files; {LIMIT}"),
    ("os.pidfd_open", "EPERM", 69, f"operation not permitted; {LACKS}"),
    ("socket", "EMFILE", 70, f"socket: too many open files; {LIMIT}"),
    ("setsockopt", "ENOMEM", 70, f"setsockopt: cannot allocate memory; {LIMIT}"),
    ("bind", "EADDRINUSE", 75, "LOCAL_PORT can't be used"),
    ("bind", "EADDRNOTAVAIL", 69, "give an address of this host by --bind"),
    ("bind", "EACCES", 77, "use a port from 1024 on"),
    ("signalfd", "EMFILE", 70, f"signalfd: too many open files; {LIMIT}"),
    ("signalfd", "EINVAL", 69, f"signalfd: invalid argument; {LACKS}"),
    ("openat2", "EMFILE", 70, f"too many open files; {LIMIT}"),
    ("openat2", "ENOSYS", 69, "this kernel lacks a system call: openat2"),
]
IN_THE_VMM = [
    ("os.dup2", "EMFILE", 70, "too many open files; allow more open files, by ulimit -n"),
    ("os.setsid", "EPERM", 69, f"operation not permitted; {LACKS}"),
    ("sigprocmask", "EINVAL", 69, f"sigprocmask: invalid argument; {LACKS}"),
]
IN_THE_SANDBOX = [
    ("unshare", "EPERM", 69, "the sandbox can't be made"),
    ("unshare", "ENOMEM", 70, f"cannot allocate memory; {LIMIT}"),
    ("mount", "EPERM", 69, "the guest's files can't be set up: MakePrivate"),
    ("mount", "ENOMEM", 70, f"cannot allocate memory; {LIMIT}"),
    ("mount", "EINVAL", 69, "in a chroot, mount its root directory on itself first"),
    ("pivot_root", "EINVAL", 69, "the guest's files can't be set up: PivotRoot"),
    ("umount2", "EINVAL", 69, "the guest's files can't be set up: Unmount"),
    ("os.mkdir", "ENOSPC", 69, "no space left on device"),
    ("setrlimit", "EPERM", 69, f"setrlimit: operation not permitted; {LACKS}"),
    ("capset", "EPERM", 69, f"capset: operation not permitted; {LACKS}"),
    (
        "landlock_restrict_self",
        "E2BIG",
        69,
        f"landlock_restrict_self: argument list too long; {LACKS}",
    ),
    ("landlock_add_rule", "ENOMEM", 70, f"landlock_add_rule: cannot allocate memory; {LIMIT}"),
    ("seccomp", "EINVAL", 69, f"seccomp: invalid argument; {LACKS}"),
    ("pidfd_getfd", "EPERM", 69, "sysctl kernel.yama.ptrace_scope=1 or less"),
    ("pidfd_getfd", "EMFILE", 70, f"too many open files; {LIMIT}"),
]
FAULTS = [*IN_THE_SUPERVISOR, *IN_THE_VMM, *IN_THE_SANDBOX]


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Launcher, list[str | Path]]:
    return fake_vmm.prepare(tmp_path)


@pytest.mark.parametrize(("call", "code", "status", "says"), FAULTS)
def test_each_call_that_fails_has_its_status_and_its_line(
    prepared: tuple[Launcher, list[str | Path]], call: str, code: str, status: int, says: str
) -> None:
    launcher, arguments = prepared
    ended = with_fault(launcher, call, code).run(*arguments, PORT, timeout=10)
    assert says in ended.error
    assert ended.status == status
    # Its port is free again, and the same launch works.
    assert launcher.run(*arguments, PORT).status == fake_vmm.STATUS


def with_fault(launcher: Launcher, call: str, code: str) -> Launcher:
    command = [sys.executable, "-m", "tests.framework.faults", call, code]
    return replace(launcher, command=command)


@pytest.mark.parametrize(("call", "code"), [fault[:2] for fault in IN_THE_SANDBOX])
def test_check_finds_each_wall_that_a_launch_would_miss(
    prepared: tuple[Launcher, list[str | Path]], call: str, code: str
) -> None:
    launcher, (*libraries, _root) = prepared
    ended = with_fault(launcher, call, code).run("--check", *libraries, timeout=10)
    assert ended.status == 69
    (line,) = (line for line in ended.stdout.decode().splitlines() if " sandbox: " in line)
    assert line.startswith("missing  sandbox: ")
    assert os.strerror(getattr(errno, code)).lower() in line


def test_check_finds_all_walls_where_a_launch_does(
    prepared: tuple[Launcher, list[str | Path]],
) -> None:
    launcher, (*libraries, root) = prepared
    assert launcher.run(*libraries, root, PORT).status == fake_vmm.STATUS
    ended = launcher.run("--check", *libraries)
    assert (ended.status, ended.stdout.decode().splitlines()[-1]) == (0, "a VM can start")


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("os.pipe2", "krunclient.supervisor.children.start:"),
        ("os.setsid", "krunclient.vmm.main.run:"),
        ("os.chdir", "krunclient.sandbox.mounts.execute:"),
    ],
)
def test_an_error_that_nobody_expected_is_told_with_its_place_in_either_process(
    prepared: tuple[Launcher, list[str | Path]], call: str, place: str
) -> None:
    launcher, arguments = prepared
    ended = with_fault(launcher, call, "KeyError").run(*arguments, PORT, timeout=10)
    assert ended.status == 70
    assert f"KeyError: an unexpected error at {place}" in ended.error
    assert "please report it" in ended.error


def test_a_kernel_without_landlock_has_the_first_wall_alone(
    prepared: tuple[Launcher, list[str | Path]],
) -> None:
    launcher, arguments = prepared
    faulty = with_fault(launcher, "landlock_create_ruleset", "EOPNOTSUPP")
    assert faulty.run(*arguments, PORT).status == fake_vmm.STATUS


def test_what_waits_behind_its_own_filter_needs_nothing_of_the_dynamic_loader(
    prepared: tuple[Launcher, list[str | Path]],
) -> None:
    """Which writes of each look-up: a call by which that filter would end the VMM."""
    launcher, arguments = prepared
    ended = launcher.run(*arguments, PORT, env={"LD_DEBUG": "bindings"})
    assert ended.status == fake_vmm.STATUS
    assert b"symbol `pause'" in ended.stderr


def limited(limit: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(limit, (value, value))


@pytest.mark.parametrize("sandbox", ["strict", "off"])
@pytest.mark.parametrize("descriptors", [*range(10, 20), 1000])
def test_too_few_descriptors_are_said_to_be_too_few(
    prepared: tuple[Launcher, list[str | Path]], descriptors: int, sandbox: str
) -> None:
    launcher, arguments = prepared
    preexec = limited(resource.RLIMIT_NOFILE, descriptors)
    ended = launcher.run(*arguments, PORT, "--sandbox", sandbox, preexec=preexec)
    if ended.status != fake_vmm.STATUS:
        assert descriptors < 1000
        assert ended.status == 70
        few = "too many open files|which limit has been reached|allow more open files"
        error = ended.stderr.decode().splitlines()[-1]  # after a warning
        assert error.startswith("krunclient: error: ")
        assert re.search(few, error, re.I)


WITHOUT_RAISING = ["setpriv", "--bounding-set=-sys_resource"] if os.geteuid() == 0 else []
NR_OPEN = int(Path("/proc/sys/fs/nr_open").read_text())
SHOW_OPEN_FILES = """
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    dprintf(6, "%lu %lu\\n", limit.rlim_cur, limit.rlim_max);
"""


@pytest.mark.parametrize("sandbox", ["strict", "off"])
@pytest.mark.parametrize("most", [4096, 16384])
def test_the_vmm_has_the_highest_limit_on_open_files_and_a_low_one_is_told(
    tmp_path: Path, most: int, sandbox: str
) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path, SHOW_OPEN_FILES)
    command = [*WITHOUT_RAISING, *launcher.command]
    hard = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (256, most))
    ended = replace(launcher, command=command).run(
        *arguments, PORT, "--sandbox", sandbox, preexec=hard
    )
    *warnings, limits = ended.stderr.decode().splitlines()
    assert limits == f"{most} {most}"
    if most < 16384:
        (warning,) = warnings
        assert warning.startswith("krunclient: warning: at most 4096 open files")
    else:
        assert warnings == []
    if facts.open_files(LIBC) == NR_OPEN:  # as root, who may raise it unless in a container
        ended = launcher.run(*arguments, PORT, "--sandbox", sandbox, preexec=hard)
        assert ended.stderr.decode() == f"{NR_OPEN} {NR_OPEN}\n"


@pytest.mark.parametrize("sandbox", ["strict", "off"])
def test_more_than_the_host_has_is_told_and_what_it_has_is_not(
    prepared: tuple[Launcher, list[str | Path]], sandbox: str
) -> None:
    launcher, arguments = prepared
    processors = len(os.sched_getaffinity(0))
    fits = (f"--cpus={processors}", "--memory=128")
    for asks in (fits, ("--cpus=255", "--memory=128"), ("--cpus=1", "--memory=1000000000")):
        ended = launcher.run(*arguments, PORT, "--sandbox", sandbox, *asks)
        assert ended.status == fake_vmm.STATUS
        if asks is fits:
            assert ended.stderr == b""
        else:
            (warning,) = ended.stderr.decode().splitlines()
            assert warning.startswith("krunclient: warning: ")
            assert f"where {processors} processors and " in warning
            assert warning.endswith("give it less by --cpus or --memory")


def test_a_host_that_allows_no_core_dumps_is_no_obstacle(
    prepared: tuple[Launcher, list[str | Path]],
) -> None:
    launcher, arguments = prepared
    command = [*WITHOUT_RAISING, *launcher.command]
    none = limited(resource.RLIMIT_CORE, 0)
    ended = replace(launcher, command=command).run(*arguments, PORT, preexec=none)
    assert ended.status == fake_vmm.STATUS


def with_memory(mebibytes: int) -> Callable[[], None]:
    return limited(resource.RLIMIT_AS, mebibytes * 2**20)


def least_memory(launcher: Launcher) -> int:
    """In MiB, for Python to come to krunclient's code at all."""
    for mebibytes in range(10, 100):
        if launcher.run("--version", preexec=with_memory(mebibytes)).status == 0:
            return mebibytes
    raise AssertionError


@pytest.mark.parametrize("more", [1, 5, 4000])
def test_too_little_memory_is_said_to_be_too_little(
    prepared: tuple[Launcher, list[str | Path]], more: int
) -> None:
    launcher, arguments = prepared
    preexec = with_memory(least_memory(launcher) + more)
    ended = launcher.run(*arguments, PORT, preexec=preexec)
    if ended.status != fake_vmm.STATUS:
        assert more < 4000
        assert ended.status == 70
        told = "memory|pthread_create: resource temporarily|failed to map segment"
        assert re.search(told, ended.error)


def on_a_full_disk(script: str, *arguments: str | Path) -> Ended:
    """Run a shell script in a mount namespace whose /tmp and /var/tmp are full."""
    full = "for path in /tmp /var/tmp; do mount -n -t tmpfs -o size=64k tmpfs $path; done"
    command = [*UNSHARE, "sh", "-c", f"{full}; {script}", "sh", *arguments]
    return Launcher(command, {"PATH": "/usr/bin:/bin"}).run()


def test_a_full_disk_is_69_where_the_code_would_be_extracted_to(tmp_path: Path) -> None:
    executable = Path("/dev/shm") / f"krunclient-{tmp_path.name}"
    shutil.copy2(EXECUTABLE, executable)
    try:
        ended = on_a_full_disk('"$1" --version', executable)
    finally:
        executable.unlink()
    assert ended.status == 69
    assert "No space left on device" in ended.error
    assert "set XDG_CACHE_HOME or TMPDIR" in ended.error


def test_a_full_disk_is_an_error_where_the_overlay_would_be(
    prepared: tuple[Launcher, list[str | Path]], tmp_path: Path
) -> None:
    launcher, arguments = prepared
    disk = tmp_path / "disk"
    disk.mkdir()
    fill = 'mount -n -t tmpfs -o nr_inodes=2 tmpfs "$0"; mkdir -m 700 "$0/overlay";'
    words = [*launcher.command, *arguments, PORT, f"--overlay={disk}/overlay"]
    command = [*UNSHARE, "sh", "-c", f'{fill} exec "$@"', disk, *words]
    ended = replace(launcher, command=command).run()
    assert ended.status == 69
    assert "no space left on device" in ended.error


@pytest.mark.parametrize("damaged", [100_000, 5_000_000, -20_000, -9_000, -1_000])
def test_a_damaged_executable_never_runs(tmp_path: Path, damaged: int) -> None:
    executable = tmp_path / "krunclient"
    content = bytearray(EXECUTABLE.read_bytes())
    content[damaged : damaged + 500] = bytes(500)
    executable.write_bytes(content)
    executable.chmod(0o755)
    ended = Launcher([executable], {"XDG_CACHE_HOME": str(tmp_path)}).run("--version")
    assert ended.status == 69
    assert "the executable is damaged" in ended.error
    executable.write_bytes(content[: len(content) // 2])
    cut = Launcher([executable], {"XDG_CACHE_HOME": str(tmp_path)}).run("--version")
    assert cut.status == 69
    assert "the executable is damaged" in cut.error


@pytest.mark.parametrize("status", [0, 1, 125, 126, 127, 255])
def test_every_status_of_the_vmms_comes_back(tmp_path: Path, status: int) -> None:
    launcher, arguments = fake_vmm.prepare(tmp_path, f"_exit({status});")
    assert launcher.run(*arguments, PORT).status == status


def test_no_decision_depends_on_the_time_of_day() -> None:
    """A step of the clock changes nothing: only what tells the time looks at it."""
    looks = {
        path.name
        for path in (TOP / "krunclient").rglob("*.py")
        if re.search(r"time\.time|CLOCK_REALTIME|datetime", path.read_text())
    }
    assert looks == {"log.py", "metrics.py"}


def test_nothing_of_this_needs_the_working_directory(
    prepared: tuple[Launcher, list[str | Path]], tmp_path: Path
) -> None:
    launcher, arguments = prepared
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd {gone} && rmdir {gone} && exec "$@"'
    command = ["sh", "-c", script, "sh", *launcher.command]
    environment = {**launcher.environment, "PYTHONPATH": PYTHONPATH}
    there = replace(launcher, command=command, environment=environment)
    assert there.run(*arguments, PORT).status == fake_vmm.STATUS
