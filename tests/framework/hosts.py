"""Run a command where microVMs run: on this host's KVM, else on an emulated one.

    python -m tests.framework.hosts [--emulated] [--split] -- COMMAND...

An openable /dev/kvm proves nothing (on some cloud machines the guest dies in its first
instructions), so the question is put to a guest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from target import IS_FOREIGN
from tests.framework import emulated, guests
from tests.framework.paths import EXECUTABLE, TOP

PROBE_SECONDS = 10
PROBE_STATUS = 42


def runs_microvms() -> bool:
    """Whether a guest runs to its end on this host."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "bin/app")
        program.parent.mkdir()
        program.write_text(f"#!/bin/busybox sh\nexit {PROBE_STATUS}\n")
        program.chmod(0o755)
        (program.parent / "busybox").write_bytes(guests.BUSYBOX.read_bytes())
        (program.parent / "busybox").chmod(0o755)
        probe = [str(EXECUTABLE), "--log-level", "error", directory, "30999"]
        try:
            return (
                subprocess.run(probe, timeout=PROBE_SECONDS, capture_output=True).returncode
                == PROBE_STATUS
            )
        except subprocess.TimeoutExpired:
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulated", action="store_true", help="do not try this host's own KVM")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for an emulated run")
    parser.add_argument(
        "--split",
        action="store_true",
        help="share the tests of a pytest between as many emulated hosts as run side by side",
    )
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    here = not (arguments.emulated or IS_FOREIGN or "HOST_KERNEL" in os.environ)
    if here and runs_microvms():
        print("microVMs run on this host's own KVM", flush=True)
        return subprocess.run(arguments.command, cwd=TOP).returncode
    hosts = emulated.how_many() if arguments.split else 1
    what = "an emulated host" if hosts == 1 else f"{hosts} emulated hosts"
    print(f"microVMs run on emulated KVM: starting {what}", flush=True)
    shares = [[f"--splits={hosts}", f"--group={number}"] for number in range(1, hosts + 1)]
    commands = [[*arguments.command, *(share if hosts > 1 else [])] for share in shares]
    return emulated.run(commands, arguments.timeout)


if __name__ == "__main__":
    sys.exit(main())
