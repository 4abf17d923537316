"""Landlock forbids files outside the guest's root and all TCP ports, by the kernel alone.

Documentation/userspace-api/landlock.rst of the kernel. It is the second
wall, used as far as the kernel has it: mount namespace and seccomp stand without it.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import Structure, c_int32, c_uint64

from krunclient.model import KVM
from krunclient.record import Record
from krunclient.sandbox.mounts import DESCRIPTORS, GUEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc

RULE_PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
IOCTL_DEV = 1 << 15
# How many of the access rights of files, from the lowest bit, each ABI knows.
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
NET_BIND_AND_CONNECT = 0b11  # ABI 4
SCOPE_ABSTRACT_UNIX_AND_SIGNAL = 0b11  # ABI 6


class RulesetAttributes(Structure):
    """struct landlock_ruleset_attr: what is handled, that is, denied without a rule."""

    _fields_ = (
        ("handled_access_fs", c_uint64),
        ("handled_access_net", c_uint64),
        ("scoped", c_uint64),
    )


class PathBeneath(Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _layout_ = "ms"  # for Python 3.14 and later: what `_pack_` has meant so far
    _fields_ = (("allowed_access", c_uint64), ("parent_fd", c_int32))


class Rule(Record):
    """Access rights below a path."""

    path: str
    access: int


def all_access(abi: int) -> int:
    """Every right of files that an ABI knows."""
    return (1 << FS_RIGHTS[min(abi, max(FS_RIGHTS))]) - 1


def rules(abi: int) -> tuple[Rule, ...]:
    """What the VMM needs: the guest's files but no devices, KVM, and its own descriptors."""
    known = all_access(abi)
    return (
        Rule(path=f"/{GUEST}", access=known & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)),
        Rule(path=KVM, access=known & (READ_FILE | WRITE_FILE | IOCTL_DEV)),
        Rule(path=f"/{DESCRIPTORS}", access=READ_FILE | READ_DIR),
    )


def restrict(libc: Libc, abi: int, allowed: tuple[Rule, ...]) -> None:
    """Deny this process all but the rules: other files, every TCP port, processes outside.

    Raises OSError.
    """
    if not abi:
        return
    _restrict(libc, abi, all_access(abi), allowed)


def restrict_sockets(libc: Libc, abi: int) -> None:
    """Deny this process every TCP port, and processes outside. Files stay as they are: a process
    whose files Landlock restricts can't mount. Raises OSError.
    """
    if abi >= 4:
        _restrict(libc, abi, 0, ())


def _restrict(libc: Libc, abi: int, handled: int, allowed: tuple[Rule, ...]) -> None:
    attributes = RulesetAttributes(
        handled,
        NET_BIND_AND_CONNECT if abi >= 4 else 0,
        SCOPE_ABSTRACT_UNIX_AND_SIGNAL if abi >= 6 else 0,
    )
    # An older kernel takes the longer struct as long as what it does not know is 0.
    ruleset = libc.landlock_create_ruleset(ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    for rule in allowed:
        path = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
        beneath = PathBeneath(rule.access, path)
        libc.landlock_add_rule(ruleset, RULE_PATH_BENEATH, ctypes.byref(beneath), 0)
        os.close(path)
    libc.landlock_restrict_self(ruleset, 0)
    os.close(ruleset)
