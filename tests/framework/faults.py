"""Run krunclient with one call that fails, without KVM.

    python -m tests.framework.faults CALL ERRNO ARGUMENT...

CALL is `os.NAME` or the name of a function of the C library's bindings.
"""

from __future__ import annotations

import errno
import os
import sys

from krunclient import host
from krunclient.__main__ import main as krunclient
from krunclient.bindings import libc


def main() -> None:
    call, code = sys.argv[1], getattr(errno, sys.argv[2])
    del sys.argv[1:3]

    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError(code, os.strerror(code))

    host.check_kvm = lambda *_arguments: None
    owner, _, name = call.rpartition(".")
    if owner == "os":
        setattr(os, name, fail)
    else:
        load = libc.load

        def load_with_fault() -> libc.Libc:
            loaded = load()
            setattr(loaded, name, fail)
            return loaded

        libc.load = load_with_fault
    krunclient()


if __name__ == "__main__":
    main()
