"""KVM's interface as far as a guest of a few instructions needs it: <linux/kvm.h>, <asm/kvm.h> of
x86_64 and Documentation/virt/kvm/api.rst of the kernel.
"""

from __future__ import annotations

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64

KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2 = 0xC008AE05, 0x4008AE90
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
KVM_GET_REGS, KVM_SET_REGS = 0x8090AE81, 0x4090AE82
KVM_GET_SREGS, KVM_SET_SREGS = 0x8138AE83, 0x4138AE84

KVM_EXIT_HLT = 5
EXIT_NAMES = {
    0: "KVM_EXIT_UNKNOWN", 1: "KVM_EXIT_EXCEPTION", 6: "KVM_EXIT_MMIO", 8: "KVM_EXIT_SHUTDOWN",
    9: "KVM_EXIT_FAIL_ENTRY", 10: "KVM_EXIT_INTR", 17: "KVM_EXIT_INTERNAL_ERROR",
}  # fmt: skip
EXIT_REASON = slice(8, 12)  # of struct kvm_run

# Control registers and EFER, <asm/processor-flags.h> and <asm/msr-index.h>
CR0_PE, CR0_PG, CR4_PAE, EFER_LME, EFER_LMA = 1, 1 << 31, 1 << 5, 1 << 8, 1 << 10
RFLAGS_FIXED = 2  # the bit that is always set
PAGE_PRESENT, PAGE_WRITABLE, PAGE_IS_LARGE = 1, 2, 1 << 7  # <asm/pgtable_types.h>
CODE_SEGMENT, DATA_SEGMENT = 11, 3  # types: execute and read, read and write; both accessed


MAX_CPUID_ENTRIES = 256


class CpuidEntries(Structure):
    """struct kvm_cpuid2. `count` is how many entries there is room for, then how many were found.
    Each is a struct kvm_cpuid_entry2, ten numbers.
    """

    _fields_ = (
        ("count", c_uint32),
        ("padding", c_uint32),
        ("entries", c_uint32 * 10 * MAX_CPUID_ENTRIES),
    )


class MemoryRegion(Structure):
    """struct kvm_userspace_memory_region. Sizes are in bytes."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_address", c_uint64),
        ("size", c_uint64),
        ("host_address", c_uint64),
    )


class Registers(Structure):
    """struct kvm_regs."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
        )
    )


class Segment(Structure):
    """struct kvm_segment."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl")),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )


class DescriptorTable(Structure):
    """struct kvm_dtable."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class SpecialRegisters(Structure):
    """struct kvm_sregs."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", DescriptorTable),
        ("idt", DescriptorTable),
        *((n, c_uint64) for n in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )
