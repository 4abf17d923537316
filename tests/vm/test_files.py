"""The guest's files are its root, the overlay and the volumes, and nothing else of the host."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.framework.launch import Launcher, expect
from tests.framework.roots import SMALL, open_to
from tests.framework.users import USER

NewRoot = Callable[..., Path]
SECRET = "nobody in the guest may read this"


@pytest.fixture
def outside(scratch: Path) -> Iterator[Path]:
    """A file of the host beside the roots, readable and writable for all."""
    path = scratch / "outside"
    path.write_text(SECRET)
    path.chmod(0o666)
    yield path
    path.unlink()


@pytest.fixture
def directory(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the user's who starts krunclient."""
    path = scratch / "kept"
    path.mkdir(mode=0o700)
    if "any_launcher" in request.fixturenames:
        open_to(request.getfixturevalue("any_launcher").user or 0, path)
    yield path
    shutil.rmtree(path)


def tree(root: Path) -> dict[str, str]:
    """Every file of a tree: kind, mode, owner, size, times, and a hash of the content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = (
            hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file() and not path.is_symlink()
            else os.readlink(path) if path.is_symlink() else ""
        )  # fmt: skip
        found[str(path.relative_to(root))] = (
            f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {status.st_mtime_ns} {content}"
        )
    return found


HOSTILE = """
for path in /outside /dots /deep /absolute /../outside /proc/self/root/../outside \\
    /proc/1/root/../../outside /host-link; do cat $path && echo "READ $path"; done
echo STARTS TO WRITE
for path in /outside /dots /absolute; do echo changed >$path && echo "WROTE $path"; done
ln /outside /hard && echo "LINKED"
probe mknod /mem
probe handle /
mkdir /m && mount -o bind / /m && cat /m/../outside && echo "READ bind"
mount -o remount,rw / && echo "REMOUNTED"
umount -l / && cat /outside && echo "READ unmounted"
chroot /m /bin/sh -c 'cat ../../../../outside' && echo "READ chroot"
for turn in 1 2 3 4 5 6 7 8 9 10; do
    mkdir -p /race/a /race/b
    (for i in 1 2 3 4 5 6 7 8 9; do mv /race/a/x /race/b/x; mv /race/b/x /race/a/x; done) &
    mkdir -p /race/a/x; cat /race/a/x/../../../outside && echo "READ race"
done
wait
rm -rf /bin/probe /etc /race
echo DONE
"""


def test_a_guest_reads_and_writes_nothing_outside_its_root(
    any_launcher: Launcher, new_root: NewRoot, port: int, outside: Path
) -> None:
    root = new_root(HOSTILE)
    (root / "dots").symlink_to("../../../../../../../dev/shm/krunclient-tests/outside")
    (root / "absolute").symlink_to(outside)
    (root / "deep").symlink_to("/proc/self/cwd/../outside")
    (root / "host-link").symlink_to("/etc/hostname")
    (root / "etc").mkdir()
    before = tree(root)
    ended = any_launcher.run(root, str(port))
    lines = ended.stdout.decode().splitlines()
    assert lines[-1] == "DONE", ended
    assert SECRET not in ended.stdout.decode()
    # What it reads by these names later on it has written itself, into the overlay.
    first = lines[: lines.index("STARTS TO WRITE")]
    assert not [line for line in first if line.startswith("READ")]
    assert "mknod /mem: ok" not in lines
    assert "handle /: ok" not in lines
    assert outside.read_text() == SECRET
    assert tree(root) == before


def test_the_app_sees_a_writable_root_and_its_writes_are_gone_afterwards(
    any_launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root("cat /note; echo one >/note && cat /note && chmod 600 /note && mkdir /d")
    before = tree(root)
    for _ in range(2):
        ended = any_launcher.run(root, str(port))
        assert (ended.status, ended.stdout) == (0, b"one\n"), ended
    assert tree(root) == before


PANIC = "echo 2 >/proc/sys/vm/panic_on_oom; tail /dev/zero"
WRITER = 'cat /note; echo "$2" >/note; sync; eval "$1"'


def test_writes_survive_a_stop_a_panic_and_sigkill_with_an_overlay(
    any_launcher: Launcher, new_root: NewRoot, port: int, directory: Path
) -> None:
    root = new_root(WRITER)
    before = tree(root)

    def run(*arguments: str) -> bytes:
        """What the run before has written."""
        return any_launcher.run(
            f"--memory={SMALL}", "--overlay", directory, root, str(port), "--", *arguments
        ).stdout

    run("true", "first")
    assert run(PANIC, "second") == b"first\n"
    process = any_launcher.start(
        "--overlay", directory, root, str(port), "--", "echo written; sleep 100", "third"
    )
    expect(process, b"second\n", b"written\n")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run("true", "fourth") == b"third\n"
    assert tree(root) == before


def test_each_root_keeps_its_own_writes_in_a_state_dir(
    launcher: Launcher, new_root: NewRoot, port: int, directory: Path
) -> None:
    one, two = new_root(WRITER), new_root(WRITER)
    for root in (one, two):
        launcher.run("--state-dir", directory, root, str(port), "--", "true", root.name)
    ended = launcher.run("--state-dir", directory, one, str(port), "--", "true", "again")
    assert ended.stdout.decode() == f"{one.name}\n"


def test_an_overlay_belongs_to_one_vm_at_a_time(
    any_launcher: Launcher, new_root: NewRoot, port: int, directory: Path
) -> None:
    root = new_root("echo up; sleep 100")
    process = any_launcher.start("--overlay", directory, root, str(port))
    expect(process, b"up\n")
    second = any_launcher.run("--overlay", directory, root, str(port + 5000))
    assert second.status == 75
    assert "another VM has it" in second.error
    process.kill()
    process.communicate()
    ended = any_launcher.run("--overlay", directory, new_root("true"), str(port))
    assert ended.status == 0, ended


def test_a_full_overlay_gives_the_guest_enospc_and_harms_nothing_else(
    any_launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root(
        "dd if=/dev/zero of=/big bs=1M count=20 2>&1 | tail -n 3\n"
        "rm /big; i=0\n"
        "while true >/f$i; do i=$((i+1)); [ $i -lt 3000 ] || break; done 2>/dev/null\n"
        'echo "files $i"; [ -x /bin/busybox ] && echo alive'
    )
    ended = any_launcher.run("--overlay-size=2", root, str(port))
    text = ended.stdout.decode() + ended.stderr.decode()
    assert "No space left on device" in text
    assert ended.stdout.decode().splitlines()[-1] == "alive"
    count = int(text.split("files ")[1].split()[0])
    assert 250 < count < 520


def test_volumes_are_where_they_were_asked_for_and_read_only_where_said(
    any_launcher: Launcher, new_root: NewRoot, port: int, scratch: Path
) -> None:
    odd = scratch / "odd: name,\\ with"
    fixed = scratch / "fixed"
    for path in (odd, fixed):
        path.mkdir()
        (path / "in").write_text(f"{path.name}\n")
        open_to(USER, path)
    root = new_root(
        "cat /data/in /srv/deep/fixed/in; echo out >/data/out && echo wrote\n"
        "echo x >/srv/deep/fixed/out || echo refused; mount -o remount,rw /srv/deep/fixed\n"
        "echo x >/srv/deep/fixed/out || echo refused"
    )
    ended = any_launcher.run(
        f"--volume={odd}:/data", f"--volume={fixed}:/srv/deep/fixed:ro", root, str(port)
    )
    assert ended.stdout.decode().splitlines() == [odd.name, "fixed", "wrote", "refused", "refused"]
    assert (odd / "out").read_text() == "out\n"
    assert not (fixed / "out").exists()
    for path in (odd, fixed):
        shutil.rmtree(path)


def test_a_root_path_of_strange_characters_works(
    any_launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    root = new_root("echo here")
    strange = root.with_name("a:b,c\\d e\u00e9=upperdir")
    root.rename(strange)
    ended = any_launcher.run(strange, str(port))
    shutil.rmtree(strange)
    assert ended.stdout == b"here\n", ended


@pytest.mark.parametrize("made_by", ["the host", "the guest"])
def test_a_file_name_that_is_not_utf8_ends_its_vm_with_70_and_no_hang(
    any_launcher: Launcher, new_root: NewRoot, port: int, made_by: str
) -> None:
    touch = "true" if made_by == "the host" else "touch \"/names/$(printf 'b\\377d')\""
    root = new_root(f"echo started; mkdir -p /names; {touch}; ls /names; cat /names/*; sleep 60")
    if made_by == "the host":
        (root / "names").mkdir()
        Path(os.fsdecode(os.fsencode(root / "names") + b"/b\xffd")).write_text("content")
        open_to(any_launcher.user or 0, root)
    process = any_launcher.start(root, str(port))
    expect(process, b"started\n")
    started = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 70
    assert time.monotonic() - started < 5  # emulated, the guest's own commands included
    (line,) = (line for line in stderr.splitlines() if line.startswith(b"krunclient: error"))
    assert b"panicked at" in line
