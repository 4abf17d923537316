"""Ports of the host that no other test uses."""

from __future__ import annotations

import itertools

_PORTS = itertools.count(30001)


def next_port() -> int:
    return next(_PORTS)
