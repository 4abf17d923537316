"""Runs a guest of a few instructions, by KVM itself, to find out whether guests run at all.

Some cloud machines have a KVM that opens, makes VMs, and runs much of a guest's code, but not all
of it: one that emulates each instruction of a guest's kernel knows no `cmpxchg16b`, by which Linux
allocates its memory on each machine of today.
"""

from __future__ import annotations

import ctypes
import os

from krunclient.bindings import kvm
from krunclient.bindings.kvm import CpuidEntries, MemoryRegion, Registers, Segment, SpecialRegisters
from krunclient.errors import HostError
from krunclient.host.kvm import WHAT
from krunclient.host.kvm import error as kvm_error
from krunclient.model import KVM
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

SECONDS = 3  # for what takes microseconds
MEMORY_BYTES = 0x8000
# Where things are in the guest's memory. The tables of pages are three levels of one entry each.
CODE, TABLES, DATA = 0x1000, (0x2000, 0x3000, 0x4000), 0x5000
VALUE = 0x1234


class Guest(Record):
    """`code` leaves VALUE at DATA and halts. `enter` sets the mode that it is for."""

    mode: str
    code: bytes
    enter: Callable[[SpecialRegisters, mmap], None]


def _enter_16_bit(special: SpecialRegisters, _memory: mmap) -> None:
    special.cs.base = special.cs.selector = 0


def _enter_64_bit(special: SpecialRegisters, memory: mmap) -> None:
    flags = kvm.PAGE_PRESENT | kvm.PAGE_WRITABLE
    # The last level is one page of 2 MiB, from address 0 on.
    for table, entry in zip(TABLES, (*TABLES[1:], kvm.PAGE_IS_LARGE), strict=True):
        memory[table : table + 8] = (entry | flags).to_bytes(8, "little")
    flat = {"limit": 0xFFFFFFFF, "present": 1, "s": 1, "g": 1}
    special.cs = Segment(selector=8, type=kvm.CODE_SEGMENT, l=1, **flat)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(special, name, Segment(selector=16, type=kvm.DATA_SEGMENT, db=1, **flat))
    special.cr3 = TABLES[0]
    special.cr4 |= kvm.CR4_PAE
    special.cr0 |= kvm.CR0_PE | kvm.CR0_PG
    special.efer |= kvm.EFER_LME | kvm.EFER_LMA


GUESTS = (
    Guest(
        mode="16-bit",
        # mov word [si], bx; hlt
        code=bytes.fromhex("891c f4"),
        enter=_enter_16_bit,
    ),
    Guest(
        mode="64-bit",
        # lock cmpxchg16b [rsi]; hlt. DATA is zero, and so are rdx and rax: rcx and rbx go there.
        code=bytes.fromhex("f0480fc70e f4"),
        enter=_enter_64_bit,
    ),
)


MODES = " and ".join(guest.mode for guest in GUESTS)


def run_guests(device: str = KVM) -> None:
    """Run each of GUESTS. Raises LaunchError for the first that does not run.

    A guest that never ends is ended by SIGALRM, whose handler is this process's from now on.
    """
    import signal

    for guest in GUESTS:

        def give_up(*_: object, guest: Guest = guest) -> None:
            raise _error(device, guest, f"it has not ended after {SECONDS} s")

        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(SECONDS)
        try:
            _run(device, guest)
        except OSError as error:
            raise kvm_error(device, error) from None
        finally:
            signal.alarm(0)


def _run(device: str, guest: Guest) -> None:
    """Raises HostError, OSError."""
    from fcntl import ioctl
    from mmap import mmap

    opened = []
    try:
        opened.append(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        opened.append(ioctl(opened[0], kvm.KVM_CREATE_VM, 0))
        # Anonymous memory begins at a page, as KVM wants it.
        memory = mmap(-1, MEMORY_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        region = MemoryRegion(size=MEMORY_BYTES, host_address=address)
        ioctl(opened[1], kvm.KVM_SET_USER_MEMORY_REGION, region)
        opened.append(ioctl(opened[1], kvm.KVM_CREATE_VCPU, 0))
        vcpu = opened[2]
        # Without features a processor has no 64-bit mode.
        features = CpuidEntries(count=kvm.MAX_CPUID_ENTRIES)
        ioctl(opened[0], kvm.KVM_GET_SUPPORTED_CPUID, features)
        ioctl(vcpu, kvm.KVM_SET_CPUID2, features)
        memory[CODE : CODE + len(guest.code)] = guest.code
        special = SpecialRegisters()
        ioctl(vcpu, kvm.KVM_GET_SREGS, special)
        guest.enter(special, memory)
        ioctl(vcpu, kvm.KVM_SET_SREGS, special)
        registers = Registers(rbx=VALUE, rsi=DATA, rip=CODE, rflags=kvm.RFLAGS_FIXED)
        ioctl(vcpu, kvm.KVM_SET_REGS, registers)
        with mmap(vcpu, ioctl(opened[0], kvm.KVM_GET_VCPU_MMAP_SIZE)) as run:
            ioctl(vcpu, kvm.KVM_RUN, 0)
            reason = int.from_bytes(run[kvm.EXIT_REASON], "little")
        if reason != kvm.KVM_EXIT_HLT:
            name = kvm.EXIT_NAMES.get(reason, "no such name")
            raise _error(device, guest, f"it ends with exit reason {reason}, {name}")
        if int.from_bytes(memory[DATA : DATA + 2], "little") != VALUE:
            raise _error(device, guest, "it runs and does not do what it says")
    finally:
        for descriptor in reversed(opened):
            os.close(descriptor)


def _error(device: str, guest: Guest, why: str) -> HostError:
    return HostError(
        WHAT,
        device,
        f"it opens, and runs no {guest.mode} guest: {why}",
        "use a machine whose processor virtualizes, or with nested virtualization switched on",
    )
