"""The file of metrics is what Prometheus' own parser reads, whatever the root is called."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from krunclient import __version__
from krunclient.errors import BusyError, LaunchError, PermissionDeniedError, UsageError
from krunclient.supervisor import metrics
from krunclient.supervisor.metrics import Metrics
from krunclient.supervisor.usage import Usage
from tests.framework.namespaces import UNSHARE
from tests.framework.paths import TOP
from tests.framework.stages import LIBC

USED = Usage(processor_seconds=1.25, resident_bytes=3 * 2**20)


def samples(root: str = "/srv/app", phase: str = "ready", healthy: bool | None = None) -> dict:  # type: ignore[type-arg]
    labels = {"root": root, "port": "30080"}
    lines = metrics.render(labels, phase, 1800000000.25, USED, healthy=healthy)
    families = text_string_to_metric_families("".join(f"{line}\n" for line in lines))
    return {
        (sample.name, sample.labels.get("phase")): sample
        for family in families
        for sample in family.samples
    }


def test_each_value_is_read_as_it_was_written() -> None:
    found = samples()
    values = {name: sample.value for (name, phase), sample in found.items() if phase is None}
    assert values == {
        "krunclient_info": 1,
        "krunclient_start_time_seconds": 1800000000.25,
        "krunclient_processor_seconds_total": 1.25,
        "krunclient_resident_memory_bytes": 3 * 2**20,
    }
    about = found["krunclient_info", None].labels
    assert (about["pid"], about["version"]) == (str(os.getpid()), __version__)
    assert all(sample.labels["port"] == "30080" for sample in found.values())


@pytest.mark.parametrize("phase", metrics.PHASES)
def test_one_phase_is_on_and_the_others_are_off(phase: str) -> None:
    found = samples(phase=phase)
    on = {one for (name, one), sample in found.items() if one is not None and sample.value == 1}
    off = {one for (name, one), sample in found.items() if one is not None and sample.value == 0}
    assert (on, off) == ({phase}, set(metrics.PHASES) - {phase})


def test_health_is_there_once_it_is_known() -> None:
    assert ("krunclient_healthy", None) not in samples()
    for healthy in (True, False):
        assert samples(healthy=healthy)["krunclient_healthy", None].value == healthy


@pytest.mark.parametrize("root", ['/a"b', "/a\\b", "/a\nb", "/a,port=1} 2", "/ä", "/a\\"])
def test_a_root_of_any_name_is_one_label(root: str) -> None:
    assert all(sample.labels["root"] == root for sample in samples(root).values())


def test_a_root_that_is_not_utf8_is_shown_escaped() -> None:
    assert samples("/\udcff")["krunclient_info", None].labels["root"] == "/\\udcff"


LABELS = {"root": "/r", "port": "1"}


def metrics_at(path: Path) -> Metrics:
    return Metrics(str(path), LABELS)


def test_who_reads_the_file_finds_a_whole_one_and_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    writer = metrics_at(path)
    before = os.umask(0o077)
    try:
        writer.write("booting", healthy=None)
    finally:
        os.umask(before)
    with path.open() as old:
        writer.write("ready", healthy=None)
        assert 'phase="booting"} 1' in old.read()
    assert 'phase="ready"} 1' in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["vm.prom"]
    list(text_string_to_metric_families(path.read_text()))


def test_claimed_it_is_there_and_ended_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    for _ in range(2):
        found = metrics_at(path)
        found.claim(LIBC)
        assert 'phase="setup"} 1' in path.read_text()
        found.end()
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["mine\n", "# HELP other_info x\n", "", "# krunclient x\n"])
def test_nothing_of_anybody_elses_is_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vm.prom"
    path.write_text(content)
    with pytest.raises(UsageError, match="something else is there"):
        metrics_at(path).claim(LIBC)
    assert path.read_text() == content


def test_what_is_no_file_is_not_waited_for_nor_followed(tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    (tmp_path / "other").write_text("# krunclient 1 x\n")
    for make in (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(tmp_path / "other"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.mkdir(),
    ):
        make()  # type: ignore[no-untyped-call]
        with pytest.raises(LaunchError, match=r"something else is there|is a directory"):
            metrics_at(path).claim(LIBC)
        path.rmdir() if path.is_dir() else path.unlink()
    assert os.listdir(tmp_path) == ["other"]


def test_what_others_put_in_its_way_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    new = tmp_path / f".krunclient-{bytes(8).hex()}.tmp"
    path = tmp_path / "vm.prom"
    writer = metrics_at(path)
    for make in (lambda: os.mkfifo(new), lambda: new.symlink_to("/dev/full"), lambda: new.touch()):
        make()  # type: ignore[no-untyped-call]
        writer.write("ready", healthy=None)
        assert path.is_file()
        path.unlink()
        os.mkfifo(path)
        writer.write("ready", healthy=None)
        assert path.is_file()
        assert os.listdir(tmp_path) == ["vm.prom"]


def test_the_file_of_a_vm_that_runs_is_its_own_and_one_that_was_left_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "vm.prom"
    with subprocess.Popen(["sleep", "60"]) as other:
        path.write_text(f"# krunclient {other.pid} 0123456789abcdef\n")
        metrics_at(path).claim(LIBC)  # no supervisor has that number
        path.write_text(f"# krunclient {other.pid} 0123456789abcdef\n")
        other.kill()
    script = "import time; open('/proc/self/comm', 'w').write('krun:ready'); print(flush=True); "
    command = [sys.executable, "-c", f"{script}time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        path.write_text(f"# krunclient {other.pid} 0123456789abcdef\n")
        with pytest.raises(BusyError, match=f"process {other.pid} keeps its own there"):
            metrics_at(path).claim(LIBC)
        other.kill()
    metrics_at(path).claim(LIBC)


def test_what_does_not_fit_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    script = (
        "import os, sys; from krunclient.supervisor.metrics import Metrics\n"
        "place = sys.argv[1]\n"
        "writer = Metrics(f'{place}/vm.prom', {'root': 'r' * 3000, 'port': '1'})\n"
        "os.mknod(f'{place}/full', 0o600)\n"
        "try: writer.write('ready', healthy=None)\n"
        "except OSError as error: print(error.errno, os.listdir(place))\n"
    )
    mount = 'mount -t tmpfs -o size=4k none "$0" && exec "$@" "$0"'
    command = [*UNSHARE, "sh", "-c", mount, str(tmp_path), sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=TOP)
    assert ended.stdout == f"{errno.ENOSPC} ['full']\n", ended


@pytest.mark.parametrize(
    ("path", "kind", "why"),
    [
        ("/nowhere/vm.prom", UsageError, "no such file or directory"),
        ("/proc/vm.prom", LaunchError, "metrics can't be used"),
        ("/sys/vm.prom", PermissionDeniedError, "not permitted|denied|read-only"),
    ],
)
def test_a_place_that_cant_be_written_is_told_before_there_is_a_vm(
    path: str, kind: type[LaunchError], why: str
) -> None:
    with pytest.raises(kind, match=why):
        metrics_at(Path(path)).claim(LIBC)
