"""Which architecture is built for, and where the results are.

That of this machine, or the one that TARGET_MACHINE names as uname(2) does: nox sets it from
`--arch`, so that every step of a session builds for the same. Results of both may lie side by side.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from krunclient.bindings.arch import ARCHITECTURES, X86_64

MACHINE = os.environ.get("TARGET_MACHINE", platform.machine())
if MACHINE not in ARCHITECTURES:
    sys.exit(f"nothing can be built for {MACHINE}: choose --arch from {', '.join(ARCHITECTURES)}")
ARCHITECTURE = ARCHITECTURES[MACHINE]
IS_FOREIGN = platform.machine() != MACHINE

_SUFFIX = "" if ARCHITECTURE is X86_64 else f"-{MACHINE}"

# As Debian names its ports, and Go and OCI theirs.
PORT_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}

TOP = Path(__file__).resolve().parent.parent
EXECUTABLE = TOP / f"dist/github.com/tomyedwab/yesterday/nexushub/bin/krunclient{_SUFFIX}"


def result(name: str) -> Path:
    """Where something of this name is built."""
    return TOP / "build" / f"{name}{_SUFFIX}"


SITE_PACKAGES = result("site-packages")
ROOTFS = result("rootfs")
