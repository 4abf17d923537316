"""What the VMM is left with follows from who it runs as and what it is given."""

from __future__ import annotations

import pytest

from krunclient.model import User
from krunclient.sandbox.confinement import CAPABILITIES, Confinement, make
from tests.framework.stages import NO_LIMITS, settings

MIB = 2**20


def confinement(
    *words: str,
    user: User | None = None,
    uid: int = 1000,
    landlock_abi: int = 6,
    hard_limits: dict[str, int] | None = None,
    window_mib: int = 0,
) -> Confinement:
    config = settings(*words)
    return make(
        config.guest,
        config.files,
        user=user,
        vmm_uid=uid,
        landlock_abi=landlock_abi,
        hard_limits={**NO_LIMITS, **(hard_limits or {})},
        window_mib=window_mib,
        init_file=None,
    )


@pytest.mark.parametrize(
    ("words", "set_id_bits"),
    [([], True), (["--volume=/a:/b:ro"], True), (["--volume=/a:/b:ro", "--volume=/c:/d"], False)],
)
def test_a_volume_that_can_be_written_to_costs_the_set_id_bits(
    words: list[str], set_id_bits: bool
) -> None:
    found = confinement(*words)
    assert found.set_id_bits is set_id_bits
    expected = set(CAPABILITIES) - (set() if set_id_bits else {"CAP_FSETID"})
    assert set(found.capabilities) == expected


def test_only_a_vmm_whose_supervisor_has_no_privileges_is_open_to_its_user() -> None:
    assert confinement(uid=1000).is_dumpable
    assert not confinement(uid=0).is_dumpable
    user = User(uid=1000, gid=1000, groups=())
    assert not confinement(uid=1000, user=user).is_dumpable


def test_limits_grow_with_the_guest() -> None:
    small, large = confinement("--memory=64"), confinement("--memory=1064", "--cpus=3")
    assert large.limits["RLIMIT_DATA"] - small.limits["RLIMIT_DATA"] == 1000 * MIB
    assert large.limits["RLIMIT_AS"] - small.limits["RLIMIT_AS"] > 1000 * MIB
    assert large.limits["RLIMIT_NPROC"] - small.limits["RLIMIT_NPROC"] == 2
    assert small.limits["RLIMIT_DATA"] > 64 * MIB


def test_a_kernel_without_landlock_has_no_rules_of_it() -> None:
    assert confinement(landlock_abi=0).landlock_rules == ()
    assert len(confinement(landlock_abi=1).landlock_rules) == 3


def test_no_limit_is_above_what_the_process_may_have() -> None:
    limits = confinement(hard_limits={"RLIMIT_AS": 20000}).limits
    assert limits["RLIMIT_AS"] == 20000
    assert limits["RLIMIT_DATA"] == confinement().limits["RLIMIT_DATA"]


def test_memory_that_libkrun_maps_beside_the_guests_is_not_the_vmms_own() -> None:
    more = confinement(window_mib=512)
    for name in ("RLIMIT_DATA", "RLIMIT_AS"):
        assert more.limits[name] - confinement().limits[name] == 512 * MIB
