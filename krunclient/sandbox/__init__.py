"""What confines the VMM, and passt.

    confinement  what it is left with, as data
    confine      puts that into effect, wall by wall:
    privileges     the user, the user namespace, capabilities
    mounts         a mount namespace that holds the guest's root, the volumes and /dev/kvm
    landlock       the second wall around files and ports
    lifeline       a thread that dies with the supervisor
    seccomp        system calls that neither needs; bind and connect go to the supervisor
    process      ties between processes, and between a process and its memory

All but `confinement` act in the VMM child; `process` also in the supervisor, whose answers to the
filters are in supervisor/. The passt child uses `privileges`, `landlock` and `seccomp`.
"""
