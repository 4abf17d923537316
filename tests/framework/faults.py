"""Run krunclient with one call that fails, without KVM.

    python -m tests.framework.faults CALL FAULT ARGUMENT...

CALL is `os.NAME` or the name of a function of the C library's bindings; FAULT is the name of an
errno, or of a built-in exception.
"""

from __future__ import annotations

import builtins
import errno
import os
import sys

from krunclient.__main__ import main as krunclient
from krunclient.bindings import libc
from krunclient.bindings.arch import Architecture
from tests.framework.without_kvm import leave_kvm_out


def main() -> None:
    call, fault = sys.argv[1:3]
    del sys.argv[1:3]
    owner, _, name = call.rpartition(".")

    def fail(*_arguments: object, **_named: object) -> None:
        if hasattr(builtins, fault):
            raise getattr(builtins, fault)("hidden")
        code = getattr(errno, fault)
        # As the bindings do.
        text = os.strerror(code) if owner else f"{name}: {os.strerror(code)}"
        raise OSError(code, text)

    leave_kvm_out()
    if owner == "os":
        setattr(os, name, fail)
    else:
        load = libc.load

        def load_with_fault(architecture: Architecture) -> libc.Libc:
            loaded = load(architecture)
            setattr(loaded, name, fail)
            return loaded

        libc.load = load_with_fault
    krunclient()


if __name__ == "__main__":
    main()
