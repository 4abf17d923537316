"""The rules of Landlock ask for no right that an ABI does not know, nor for more than is needed."""

from __future__ import annotations

import pytest

from krunclient.sandbox import landlock

ABIS = range(1, 10)


@pytest.mark.parametrize("abi", ABIS)
def test_no_rule_has_a_right_that_the_kernel_does_not_know(abi: int) -> None:
    for rule in landlock.rules(abi):
        assert rule.access & ~landlock.all_access(abi) == 0
        assert rule.access


@pytest.mark.parametrize("abi", ABIS)
def test_the_guests_files_can_be_written_and_devices_not_made(abi: int) -> None:
    rules = {rule.path: rule.access for rule in landlock.rules(abi)}
    assert set(rules) == {"/guest", "/dev/kvm", "/proc/self/fd"}
    assert rules["/guest"] & landlock.WRITE_FILE
    assert not rules["/guest"] & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK | landlock.IOCTL_DEV)
    assert not rules["/proc/self/fd"] & landlock.WRITE_FILE
