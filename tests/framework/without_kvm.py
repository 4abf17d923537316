"""Run krunclient with its probe for KVM left out, for tests whose libkrun only records."""

from __future__ import annotations

import signal

# As the executable does first of all: Python can lose a KeyboardInterrupt where it calls back.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from krunclient.__main__ import main
from krunclient.host import kvm, passt, vcpu
from tests.framework.paths import SITE_PACKAGES


def leave_kvm_out() -> None:
    kvm.check = lambda *_arguments: None
    kvm.rights = lambda path: f"anybody may open {path}"
    vcpu.run_guests = lambda *_arguments: None


if __name__ == "__main__":
    leave_kvm_out()
    # The build's own, which stands beside the libraries in the executable.
    bundled = SITE_PACKAGES / "krunclient/bundled"
    passt.find_guest_program = lambda architecture: (
        f"{bundled}/{architecture.machine}/guest-network"
    )
    main()
