"""A guest of a few instructions tells whether this KVM runs guests. On real KVM, wherever it is."""

from __future__ import annotations

import ctypes
import os
import time

import pytest

from krunclient.bindings import kvm
from krunclient.errors import HostError, LaunchError
from krunclient.host import vcpu
from krunclient.model import KVM

needs_kvm = pytest.mark.skipif(
    os.uname().machine != "x86_64" or not os.access(KVM, os.R_OK | os.W_OK),
    reason="/dev/kvm can't be opened, or runs no guests of x86_64: tried on hosts where it does",
)
SIXTEEN, _ = vcpu.GUESTS


@pytest.mark.parametrize(
    ("number", "structure"),
    [
        (kvm.KVM_SET_USER_MEMORY_REGION, kvm.MemoryRegion),
        (kvm.KVM_GET_REGS, kvm.Registers),
        (kvm.KVM_SET_REGS, kvm.Registers),
        (kvm.KVM_GET_SREGS, kvm.SpecialRegisters),
        (kvm.KVM_SET_SREGS, kvm.SpecialRegisters),
    ],
)
def test_each_structure_is_as_large_as_its_ioctl_says(
    number: int, structure: type[ctypes.Structure]
) -> None:
    assert ctypes.sizeof(structure) == number >> 16 & 0x3FFF  # _IOC_SIZE of <asm-generic/ioctl.h>


def test_a_file_that_is_no_kvm_is_told() -> None:
    with pytest.raises(LaunchError, match="inappropriate ioctl"):
        vcpu.run_guests("/dev/null")


@needs_kvm
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("ebfe", "it has not ended after"),  # jmp to itself
        ("f4", "does not do what it says"),  # hlt alone
        ("b8f0ff8ed8 a10000", "exit reason 6, KVM_EXIT_MMIO"),  # mov ax, [0xfff0:0]
    ],
)
def test_a_guest_that_does_not_come_to_its_halt_is_told(
    monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    monkeypatch.setattr(vcpu, "GUESTS", (SIXTEEN.replace(code=bytes.fromhex(code)),))
    monkeypatch.setattr(vcpu, "SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(HostError, match=why):
        vcpu.run_guests()
    assert time.monotonic() - began < 10
    monkeypatch.setattr(vcpu, "GUESTS", (SIXTEEN,))
    vcpu.run_guests()
