"""The facts of a host are gathered in an order that finds the user's own mistakes first."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from krunclient.bindings.arch import AARCH64, ARCHITECTURES, X86_64, Architecture
from krunclient.errors import HostError, RootPathError, UsageError
from krunclient.host import facts, kvm
from krunclient.options import MIN_MEMORY_MIB
from target import ARCHITECTURE
from tests.framework import recorder
from tests.framework.roots import static_root
from tests.framework.stages import LIBC, settings


def test_a_machine_that_is_not_served_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    def be(machine: str) -> None:
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))

    for machine in ("i686", "vax", ""):
        be(machine)
        with pytest.raises(HostError, match="this architecture is not served"):
            facts.find_architecture()
    for machine, architecture in ARCHITECTURES.items():
        be(machine)
        assert facts.find_architecture() is architecture


@pytest.mark.parametrize(("architecture", "least"), [(X86_64, MIN_MEMORY_MIB), (AARCH64, 128)])
def test_a_guest_has_the_memory_that_it_needs_to_come_up(
    architecture: Architecture, least: int
) -> None:
    with pytest.raises(UsageError, match=f"--memory can't be used: {least - 1}: .* needs {least}"):
        facts.check_memory(least - 1, architecture)
    facts.check_memory(least, architecture)


def test_each_mistake_is_found_before_what_the_host_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libkrun, libkrunfw = recorder.build(tmp_path, recorder.NEWEST)
    pair = [f"--libkrun={libkrun}", f"--libkrunfw={libkrunfw}"]

    def no_kvm() -> None:
        raise HostError("KVM can't be used", "/dev/kvm", "there is none", "load it")

    def probe(*words: str) -> facts.HostFacts:
        config = settings(*pair, *words, root=str(tmp_path / "root"))
        return facts.probe(LIBC, ARCHITECTURE, config)

    monkeypatch.setattr(kvm, "check", no_kvm)
    with pytest.raises(UsageError, match="--volume can't be used"):
        probe("--volume=/nowhere:/data")
    with pytest.raises(RootPathError):
        probe()
    static_root(tmp_path / "root")
    with pytest.raises(HostError, match="KVM"):
        probe()
    monkeypatch.setattr(kvm, "check", lambda: None)
    found = probe()
    assert found.vmm_uid == os.geteuid()
    assert found.libraries.libkrun == str(libkrun)
    assert probe("--sandbox=off").landlock_abi == 0


def test_root_can_have_as_many_open_files_as_the_kernel_gives_and_others_their_hard_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hard = facts.hard_limits(LIBC, ["RLIMIT_NOFILE"])["RLIMIT_NOFILE"]
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    if os.geteuid() == 0:
        assert facts.open_files(LIBC) in (hard, most)  # a container may have taken the right
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert facts.open_files(LIBC) == min(hard, most)
    assert facts.hard_limits(LIBC, ["RLIMIT_NOFILE"])["RLIMIT_NOFILE"] == hard
