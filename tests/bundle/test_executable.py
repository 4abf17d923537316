"""The executable runs from anywhere, as anybody, with or without a cache, and builds the same."""

from __future__ import annotations

import marshal
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import shiv

from krunclient import __version__
from krunclient.bindings.arch import ARCHITECTURES
from target import MACHINE
from tests.framework import hosts, recorder
from tests.framework.launch import Launcher, ignore_stops
from tests.framework.namespaces import UNSHARE
from tests.framework.paths import EXECUTABLE, SCRIPTS, TOP
from tests.framework.users import USER

VERSION = f"krunclient {__version__}\n".encode()
MAX_BYTES = 16 * 2**20
FIRST_STAGE = TOP / "krunclient/zipapp"


@pytest.fixture(autouse=True)
def no_other_copies() -> None:
    """A start takes any whole copy that it finds, and these two places are always looked at."""
    for parent in ("/tmp", "/var/tmp"):
        shutil.rmtree(Path(parent, f"krunclient-{os.geteuid()}"), ignore_errors=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def launcher(cache: Path) -> Launcher:
    return Launcher([EXECUTABLE], {"XDG_CACHE_HOME": str(cache)})


def extracted(cache: Path) -> Path:
    (directory,) = (
        path for path in (cache / "krunclient").iterdir() if path.is_dir() and not path.suffix
    )
    return directory


def runs(launcher: Launcher) -> None:
    ended = launcher.run("--version")
    assert (ended.stdout, ended.stderr, ended.status) == (VERSION, b"", 0)


def test_it_runs_with_an_empty_environment(tmp_path: Path) -> None:
    runs(Launcher([EXECUTABLE], {"TMPDIR": str(tmp_path)}))
    runs(Launcher([EXECUTABLE], {}))


def test_it_runs_by_a_relative_path_and_from_any_directory(launcher: Launcher) -> None:
    for directory in (EXECUTABLE.parent, Path("/"), Path("/proc")):
        command = [f"./{os.path.relpath(EXECUTABLE, directory)}"]
        runs(Launcher(command, launcher.environment, directory))


def test_it_runs_by_another_python(launcher: Launcher) -> None:
    runs(Launcher([sys.executable, EXECUTABLE], launcher.environment))


# As an ordinary Python that says of itself what another would.
AS_ANOTHER = "import runpy, sys; {}; sys.argv = ['', '--version']; runpy.run_path({!r})"


@pytest.mark.parametrize(
    ("says", "status", "error"),
    [
        ("sys.abiflags = ''", 0, ""),
        ("sys.abiflags = 't'", 69, "Python has no global lock: {python}: it reserves 1 GiB"),
        ("sys.version_info = (3, 10, 0)", 0, ""),
        ("sys.version_info = (3, 9, 18)", 69, "Python is too old: {python}: it is 3.9; run"),
    ],
)
def test_a_python_that_cant_run_a_vm_is_refused_at_a_first_start(
    cache: Path, says: str, status: int, error: str
) -> None:
    command = [sys.executable, "-c", AS_ANOTHER.format(says, str(EXECUTABLE))]
    ended = Launcher(command, {"XDG_CACHE_HOME": str(cache)}).run()
    assert (ended.status, ended.stdout) == (status, VERSION if status == 0 else b"")
    start = f"krunclient: error: {error.format(python=sys.executable)}" if error else ""
    assert ended.stderr.decode().startswith(start)
    assert ended.stderr.count(b"\n") == bool(error)


def test_a_python_without_its_global_lock_takes_no_copy_of_an_ordinary_one(
    launcher: Launcher, cache: Path
) -> None:
    runs(launcher)
    command = [sys.executable, "-c", AS_ANOTHER.format("sys.abiflags = 't'", str(EXECUTABLE))]
    ended = Launcher(command, {"XDG_CACHE_HOME": str(cache)}).run()
    assert (ended.status, ended.stdout) == (69, b"")


def test_a_cache_that_cant_be_written_is_passed_over(tmp_path: Path) -> None:
    runs(Launcher([EXECUTABLE], {"XDG_CACHE_HOME": "/proc/nowhere", "TMPDIR": str(tmp_path)}))
    assert list(tmp_path.glob("krunclient-*/*/code"))


def test_a_cache_that_others_could_change_is_passed_over(cache: Path, tmp_path: Path) -> None:
    (cache / "krunclient").mkdir(mode=0o700)
    (cache / "krunclient").chmod(0o777)
    runs(Launcher([EXECUTABLE], {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path)}))
    assert not list((cache / "krunclient").iterdir())


def test_it_runs_in_a_user_namespace_without_the_hosts_root() -> None:
    """Where root's directories, / among them, are nobody's."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        executable = shutil.copy2(EXECUTABLE, directory)
        cache = Path(directory, "cache")
        cache.mkdir(mode=0o700)
        user = None
        if os.geteuid() == 0:
            user = USER
            Path(directory).chmod(0o755)
            os.chown(cache, user, user)
        runs(
            Launcher(
                ["unshare", "--user", "--map-root-user", "--", executable],
                {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache)},
                user=user,
            )
        )
        assert (cache / "krunclient").is_dir()


def test_fifty_at_once_on_a_cold_cache_all_run(launcher: Launcher) -> None:
    with ThreadPoolExecutor(50) as pool:
        ended = list(pool.map(lambda _: launcher.run("--version"), range(50)))
    assert [(one.stdout, one.stderr, one.status) for one in ended] == [(VERSION, b"", 0)] * 50


@pytest.mark.parametrize(
    "damage",
    [
        lambda target: shutil.rmtree(target),
        lambda target: (target / "code").unlink(),
        lambda target: (target / "code").write_text(""),
        lambda target: (target / "code").write_bytes(bytes(4)),
        lambda target: os.truncate(target / "code", 100_000),
        lambda target: (target / "site-packages").rename(target / "away"),
        lambda target: (
            (target / "site-packages/krunclient/cli.py").write_text("x"),
            (target / "code").write_text("x"),
        ),
        lambda target: os.truncate(
            target / "site-packages/krunclient/bundled" / MACHINE / "libkrun.so", 10
        ),
        lambda target: [path.write_bytes(b"") for path in target.rglob("*") if path.is_file()],
        lambda target: (target / "later").unlink(),
        lambda target: flip(target / "later", 1000),
        lambda target: (
            target.rename(target.with_suffix(".away")).parent.joinpath(target.name).touch()
        ),
        lambda target: target.symlink_to(target.rename(target.with_suffix(".away"))),
    ],
)
def test_a_damaged_cache_is_made_anew(launcher: Launcher, cache: Path, damage: object) -> None:
    runs(launcher)
    damage(extracted(cache))  # type: ignore[operator]
    runs(launcher)
    assert launcher.run("--list").status == 0  # whose code is not a launch's
    libkrun = extracted(cache) / "site-packages/krunclient/bundled" / MACHINE / "libkrun.so"
    assert libkrun.stat().st_size > 10**6


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_no_bit_of_what_a_first_start_reads_can_change_unnoticed(
    launcher: Launcher, cache: Path
) -> None:
    """And the executable that is whole starts on the same cache afterwards."""
    whole = EXECUTABLE.read_bytes()
    with zipfile.ZipFile(EXECUTABLE) as archive:
        found = {one.filename: one.header_offset for one in archive.infolist()}
        directory = archive.start_dir
    read_first = [found[f"{name}.py"] for name in ("bootstrap", "extract", "loader", "unpack")]
    executable = cache / "damaged"
    damaged = replace(launcher, command=[executable])
    for position in (*read_first, found["contents"], directory, len(whole) - 60):
        # In the local header's name, in the data, and in between.
        for further in (32, 55, 100):
            content = bytearray(whole)
            content[min(position + further, len(whole) - 1)] ^= 2
            executable.write_bytes(content)
            executable.chmod(0o755)
            ended = damaged.run("--version")
            assert (ended.status, ended.stdout, ended.stderr.count(b"\n")) == (69, b"", 1)
            assert "the executable is damaged" in ended.error
    runs(launcher)


def test_a_stream_that_is_closed_at_the_start_is_not_the_executable(launcher: Launcher) -> None:
    runs(launcher)
    closed = replace(launcher, command=["sh", "-c", '"$@" >&-', "sh", *launcher.command])
    ended = closed.run("--version")
    assert (ended.stdout, ended.stderr, ended.status) == (b"", b"", 0)


def test_closed_streams_are_open_again_before_anything_is_imported() -> None:
    """What libffi opens and keeps, from the import of ctypes on, would be one of them."""
    program = """
import loader
code = compile("import os; [os.fstat(number) for number in range(3)]; os._exit(4)", "", "exec")
loader.prepare("/copy", ({}, {"krunclient": code}, ["krunclient"]), None)(None)
"""
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(command, env={"PYTHONPATH": str(FIRST_STAGE)}).returncode == 4


def test_who_started_it_is_known_before_all_else_by_another_python_too() -> None:
    """By the shell's line it is told; to ask later would not see that a parent has died."""
    program = """
import bootstrap, os, start, sys, types
bootstrap.__loader__ = types.SimpleNamespace(get_data=lambda name: b"id")
start.start = lambda archive, build_id, parent: os._exit(4 if parent == os.getppid() else 5)
bootstrap.main()
"""
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, env={"PYTHONPATH": str(FIRST_STAGE)}).returncode == 4


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_a_damaged_executable_is_69_where_nobody_can_be_told(cache: Path, closed: str) -> None:
    damaged = cache / "damaged"
    damaged.write_bytes(EXECUTABLE.read_bytes()[:-1])
    damaged.chmod(0o755)
    told = Launcher(["sh", "-c", f'"$@" {closed}', "sh", damaged], {"XDG_CACHE_HOME": str(cache)})
    assert told.run("--version").status == 69


def test_no_byte_of_the_code_can_change_unnoticed(launcher: Launcher, cache: Path) -> None:
    runs(launcher)
    code = extracted(cache) / "code"
    whole = code.read_bytes()
    for position in (*range(8), *range(100, len(whole), len(whole) // 12), len(whole) - 1):
        flip(code, position)
        runs(launcher)
        data = code.read_bytes()  # it is another
        assert zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")


def test_code_that_is_damaged_unseen_is_made_anew_by_the_next_start(
    launcher: Launcher, cache: Path
) -> None:
    """As a loss of power may leave it: of the right size and time, and imported late."""
    runs(launcher)
    target = extracted(cache)
    flip(target / "later", 1000)
    first, (states, *rest) = marshal.loads((target / "code").read_bytes()[4:])
    found = (target / "later").stat()
    states["later"] = found.st_size, found.st_ctime_ns
    content = marshal.dumps((first, (states, *rest)))
    (target / "code").write_bytes(zlib.crc32(content).to_bytes(4, "little") + content)
    ended = launcher.run("--check")
    assert ended.status == 70
    assert f"{target}/later: it is damaged or gone; start it again" in ended.error
    assert launcher.run("--check").status in (0, 69)


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no KVM opens here")
def test_check_says_that_a_vm_can_start_where_one_does(launcher: Launcher) -> None:
    """Some machines have a KVM that opens, and on which no guest gets far."""
    ended = launcher.run("--check")
    (kvm,) = (line for line in ended.stdout.decode().splitlines() if " KVM: " in line)
    if hosts.runs_microvms():
        assert kvm.endswith("runs 16-bit and 64-bit guests")
    else:
        assert ended.status == 69
        assert "it opens, and runs no " in kvm


def test_a_cache_of_another_user_is_never_used(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make another user's directory")
    directory = tmp_path / f"krunclient-{os.geteuid()}"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    runs(Launcher([EXECUTABLE], {"TMPDIR": str(tmp_path)}))
    assert not list(directory.iterdir())


def test_no_place_to_extract_to_is_69_and_says_what_to_do() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        executable = shutil.copy2(EXECUTABLE, directory)
        script = (
            "for path in /tmp /var/tmp; do mount -t tmpfs -o ro tmpfs $path; done;"
            f' exec "{executable}" --version'
        )
        ended = Launcher([*UNSHARE, "sh", "-c", script], {"PATH": "/usr/bin:/bin"}).run()
    assert ended.status == 69
    assert "set XDG_CACHE_HOME or TMPDIR" in ended.error


@pytest.fixture
def another_shiv() -> Iterator[Path]:
    """A directory with shiv as somebody else has it: with other modes, listed in another order."""
    installed = Path(shiv.__file__).parent
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:  # a tmpfs: the newest first
        copied = shutil.copytree(installed, Path(directory, "shiv"))
        for path in copied.rglob("*.py"):
            path.chmod(0o664)
        assert os.listdir(copied / "bootstrap") != os.listdir(installed / "bootstrap")
        yield Path(directory)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_it_builds_to_the_same_bytes_for_each_architecture_whoever_builds_it(
    tmp_path: Path, machine: str, another_shiv: Path
) -> None:
    outputs = {0o022: tmp_path / "once", 0o002: tmp_path / "again"}
    paths = {0o022: f"{TOP}", 0o002: f"{another_shiv}:{TOP}"}
    for umask, output in outputs.items():
        command = [sys.executable, str(SCRIPTS / "build.py"), "--output", str(output)]
        environment = {**os.environ, "TARGET_MACHINE": machine, "PYTHONPATH": paths[umask]}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, umask=umask)
    once, again = outputs.values()
    assert once.read_bytes() == again.read_bytes()
    assert once.stat().st_size < MAX_BYTES
    if machine == MACHINE:
        assert once.read_bytes() == EXECUTABLE.read_bytes()
    with zipfile.ZipFile(once) as archive:
        bundled = f"site-packages/krunclient/bundled/{machine}/"
        names = [name for name in archive.namelist() if re.search("/bundled/(?!licences/).", name)]
        heads = {name.removeprefix(bundled): archive.read(name) for name in names}
        heads = {name: data for name, data in heads.items() if re.search("^[^@]+(@0)?$", name)}
        assert set(heads) == {"libkrun.so@0", "libkrunfw.so@0", "guest-network"}
        e_machine = struct.pack("<H", ARCHITECTURES[machine].elf_machine)
        assert [name for name, data in heads.items() if data[18:20] != e_machine] == []


def test_the_licences_and_origins_travel_inside(launcher: Launcher, cache: Path) -> None:
    runs(launcher)
    licences = extracted(cache) / "site-packages/krunclient/bundled/licences"
    names = {path.name for path in licences.iterdir()}
    assert {"ORIGINS.md", "Apache-2.0.txt", "GPL-2.0-only.txt", "LGPL-2.1-only.txt"} <= names


def test_a_start_with_loader_variables_is_made_again_without_them(
    launcher: Launcher, tmp_path: Path
) -> None:
    # The loader tells on stderr which file it looked for on whose behalf.
    variables = {"LD_LIBRARY_PATH": str(tmp_path / "app/lib"), "LD_DEBUG": "libs"}
    ended = launcher.run("--check", env=variables)
    # exec keeps the process; --check loads libkrun in one that it forks later.
    lines = ended.stderr.decode().splitlines()
    last = max(number for number, text in enumerate(lines) if str(tmp_path / "app/lib") in text)
    libkrun = min(number for number, text in enumerate(lines) if "libkrun" in text)
    assert last < libkrun


def test_a_preload_that_comes_back_at_each_exec_is_no_endless_loop(
    launcher: Launcher, tmp_path: Path
) -> None:
    library = tmp_path / "preload.so"
    recorder.compile_library(
        library,
        """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdlib.h>
        #include <string.h>
        int execve(const char *path, char *const argv[], char *const envp[])
        {
            int (*real)(const char *, char *const *, char *const *);
            char *more[4096];
            int count = 0;
            *(void **)&real = dlsym(RTLD_NEXT, "execve");
            for (; envp[count] && count < 4000; count++)
                more[count] = envp[count];
            more[count++] = getenv("KEPT_PRELOAD");
            more[count] = 0;
            return real(path, argv, more);
        }
        """,
    )
    kept = f"LD_PRELOAD={library}"
    variables = {"LD_PRELOAD": str(library), "KEPT_PRELOAD": kept}
    ended = launcher.run("--version", env=variables, timeout=20)
    assert (ended.stdout, ended.status) == (VERSION, 0)


def test_a_better_place_for_the_copy_is_made_whatever_lies_elsewhere(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    elsewhere = {"TMPDIR": str(tmp_path)}
    runs(Launcher([EXECUTABLE], elsewhere))
    assert list(tmp_path.glob("krunclient-*"))
    for variable, place in (("XDG_CACHE_HOME", "not/there/yet"), ("HOME", "home/not/there")):
        runs(Launcher([EXECUTABLE], {**elsewhere, variable: str(tmp_path / place)}))
        extracted(tmp_path / place / (".cache" if variable == "HOME" else ""))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o777)
    closed.chmod(0o777)  # others could change it: then the other copy serves
    runs(Launcher([EXECUTABLE], {**elsewhere, "XDG_CACHE_HOME": str(closed)}))
    assert not list(closed.iterdir())


def test_stops_that_were_ignored_at_the_start_are_heard_before_anything_is_imported() -> None:
    program = """
import os, signal, sys
import loader
loader.prepare("", ({}, {}, []), None)
os._exit(sum(signal.getsignal(number) == signal.SIG_DFL for number in (1, 2, 3, 15)))
"""
    environment = {"PYTHONPATH": str(FIRST_STAGE)}
    command = [sys.executable, "-c", program]
    ignored = subprocess.run(command, env=environment, preexec_fn=ignore_stops)
    assert ignored.returncode == 4


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("MemoryError()", "not enough memory"),
        ("OSError(24, 'Too many open files')", "[Errno 24] Too many open files"),
    ],
)
def test_code_that_a_limit_keeps_from_being_loaded_is_told_in_a_line(error: str, why: str) -> None:
    program = f"""
import loader
code = compile("raise {error}", "", "exec")
loader.prepare("/copy", ({{}}, {{"krunclient": code}}, ["krunclient"]), None)(None)
"""
    environment = {"PYTHONPATH": str(FIRST_STAGE)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    remedy = "see which limit has been reached"
    told = f"krunclient: error: krunclient can't be loaded: /copy: {why}; {remedy}\n"
    assert (ended.returncode, ended.stderr.decode()) == (70, told)
