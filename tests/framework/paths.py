"""Where things are in this checkout."""

from __future__ import annotations

import target

TOP = target.TOP
EXECUTABLE = target.EXECUTABLE
SITE_PACKAGES = target.SITE_PACKAGES
ROOTFS = target.ROOTFS
GUESTS = target.result("guests")
SCRIPTS = TOP / "dist-scripts"
ARTEFACTS = target.result("artefacts")
# For programs of the tests that are started with an environment of their own.
PYTHONPATH = f"{TOP}:{SCRIPTS}"
