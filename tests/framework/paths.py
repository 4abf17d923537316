"""Where things are in this checkout."""

from __future__ import annotations

from target import EXECUTABLE, GUESTS, ROOTFS, TOP

__all__ = ["ARTEFACTS", "EXECUTABLE", "GUESTS", "ROOTFS", "SCRIPTS", "TOP"]

SCRIPTS = TOP / "dist-scripts"
ARTEFACTS = TOP / "build/artefacts"
