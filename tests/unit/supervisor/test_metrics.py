"""The file of metrics is what Prometheus' own parser reads, whatever the root is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from krunclient import __version__
from krunclient.errors import LaunchError, PermissionDeniedError, UsageError
from krunclient.supervisor import metrics
from krunclient.supervisor.metrics import Metrics
from krunclient.supervisor.usage import Usage
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


def test_who_reads_the_file_finds_a_whole_one_and_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    writer = Metrics(str(path), {"root": "/r", "port": "1"}, (os.getpid(),))
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


def test_nothing_of_anybody_elses_is_overwritten_or_removed(tmp_path: Path) -> None:
    for name, content in (("notes", "mine\n"), ("other", "# HELP other_info x\n")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(UsageError, match="something else is there"):
            metrics.claim(LIBC, str(path))
        metrics.remove(str(path), os.getpid())
        assert path.read_text() == content
    with pytest.raises(UsageError, match="something else is there"):
        metrics.claim(LIBC, "/dev/null")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="something else is there"):
        metrics.claim(LIBC, str(tmp_path / "link"))


def test_the_file_of_a_vm_that_came_after_stays(tmp_path: Path) -> None:
    path = tmp_path / "vm.prom"
    Metrics(str(path), {"root": "/r", "port": "1"}, (os.getpid(),)).write("ready", healthy=None)
    metrics.remove(str(path), os.getpid() + 1)
    assert path.exists()
    metrics.remove(str(path), os.getpid())
    assert not path.exists()


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
        metrics.claim(LIBC, path)
