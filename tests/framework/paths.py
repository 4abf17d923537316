"""Where things are in this checkout."""

from __future__ import annotations

from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
SCRIPTS = TOP / "dist-scripts"
EXECUTABLE = TOP / "dist/github.com/tomyedwab/yesterday/nexushub/bin/krunclient"
ROOTFS = TOP / "build/rootfs"
GUESTS = TOP / "build/guests"
ARTEFACTS = TOP / "build/artefacts"
