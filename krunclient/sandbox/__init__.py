"""What confines the VMM, each wall in a module of its own.

    privileges  the user, the user namespace, capabilities, resource limits
    mounts      a mount namespace that holds the guest's root, the volumes and /dev/kvm
    landlock    the second wall around files and ports
    seccomp     system calls that a VMM never needs; bind and connect go to the supervisor
    network     the supervisor's answers to those

The first four act in the child before the guest starts; the last acts in the supervisor.
"""
