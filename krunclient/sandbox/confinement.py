"""Which mounts, limits, capabilities and Landlock rules the VMM gets, as data."""

from __future__ import annotations

from krunclient.model import KVM
from krunclient.record import Record
from krunclient.sandbox import landlock, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from krunclient.model import Files, Guest, User
    from krunclient.sandbox.landlock import Rule
    from krunclient.sandbox.mounts import Operation

# <linux/capability.h>. All that the virtio-fs server in libkrun needs to act for the guest's
# users on the guest's own files; with a user namespace, each is in force inside that alone.
# Nothing else of a VMM needs a capability.
CAPABILITIES = {
    "CAP_CHOWN": 0,  # chown by the guest's root
    "CAP_DAC_OVERRIDE": 1,  # the guest's root reads and writes whatever the mode says
    "CAP_FOWNER": 3,  # chmod and utime by the guest's root on files of its other users
    "CAP_FSETID": 4,  # set-user-ID bits stay when the guest's root writes
    "CAP_SETGID": 6,  # files that a user of the guest makes belong to that user's group
    "CAP_SETUID": 7,  # and to that user
}

# What a VMM takes beside the guest's RAM: code, stacks, buffers of 1 to 2 MiB a device.
MAX_OWN_MEMORY_MIB = 512
# And of addresses, which bounds the memory that is shared and what the kernel needs for maps:
# about 600 MiB are in use, and the C library may reserve an arena for each thread.
MAX_OWN_ADDRESS_SPACE_MIB = 2048
ARENA_MIB = 64
# About 12 are in use, and one a vCPU.
MAX_OWN_THREADS = 256


class Confinement(Record):
    """With `user_namespace` the VMM is root in a namespace of its own, which is its user on the
    host; no other user is mapped.

    Without `sockets` it can make none, nor connect, bind or listen. `is_dumpable` leaves it open to
    ptrace(2) by its user, which a supervisor without privileges needs. `limits` are setrlimit(2)'s
    by name, both the soft and the hard one. Without `set_id_bits` no file can be made set-user-ID
    or set-group-ID. A `landlock_abi` of 0 is a kernel without Landlock.
    """

    user_namespace: bool
    is_dumpable: bool
    mounts: tuple[Operation, ...]
    limits: Mapping[str, int]
    capabilities: tuple[str, ...]
    landlock_abi: int
    landlock_rules: tuple[Rule, ...]
    set_id_bits: bool
    sockets: bool


def make(
    guest: Guest,
    files: Files,
    *,
    user: User | None,
    vmm_uid: int,
    landlock_abi: int,
    hard_limits: Mapping[str, int],
    window_mib: int,
    init_file: str | None,
    guest_program: tuple[str, str] | None = None,
    kvm_device: str = KVM,
) -> Confinement:
    """`user` is who the VMM becomes, if any, and `vmm_uid` who it then is. `window_mib` is memory
    that libkrun maps for its virtio-fs server beside the guest's RAM. `init_file` is the path in
    the guest of the file for libkrun's init, if libkrun can't serve it from memory.
    `guest_program` is what sets a network card up, on the host and in the guest; with a card,
    libkrun makes no sockets.
    """
    user_namespace = vmm_uid != 0
    # A file on a volume that runs as its owner would run so for every user of the host.
    set_id_bits = all(volume.read_only for volume in files.volumes)
    return Confinement(
        user_namespace=user_namespace,
        # As root, the supervisor needs no leave; other processes of the VMM's user get none.
        is_dumpable=user_namespace and user is None,
        mounts=mounts.operations(
            files,
            user_namespace=user_namespace,
            init_file=init_file,
            guest_program=guest_program,
            kvm_device=kvm_device,
        ),
        limits={
            name: min(value, hard_limits[name])
            for name, value in _limits(guest, window_mib, user_namespace=user_namespace).items()
        },
        capabilities=tuple(name for name in CAPABILITIES if set_id_bits or name != "CAP_FSETID"),
        landlock_abi=landlock_abi,
        landlock_rules=landlock.rules(landlock_abi) if landlock_abi else (),
        set_id_bits=set_id_bits,
        sockets=guest_program is None,
    )


def _limits(guest: Guest, window_mib: int, *, user_namespace: bool) -> Mapping[str, int]:
    """What the VMM can take of the host, as far as limits of a process bound it.

    What they leave open (threads of root's, the kernel's own memory) is for a cgroup.
    """
    memory_mib = guest.memory_mib + window_mib
    own_addresses_mib = MAX_OWN_ADDRESS_SPACE_MIB + guest.vcpus * ARENA_MIB
    limits = {
        "RLIMIT_DATA": (memory_mib + MAX_OWN_MEMORY_MIB) * 2**20,
        "RLIMIT_AS": (memory_mib + own_addresses_mib) * 2**20,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    # Outside a user namespace of its own, the VMM would be counted with all that the user runs.
    if user_namespace:
        limits["RLIMIT_NPROC"] = guest.vcpus + MAX_OWN_THREADS
    return limits
