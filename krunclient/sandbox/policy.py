"""The network policy, as a value: `network` enforces it."""

from __future__ import annotations

from krunclient.address import Endpoint
from krunclient.record import Record


class Policy(Record):
    """What the guest may do with sockets. All else is refused.

    libkrun is told to map the guest's port to the same number, so that a bind to that number
    is the guest's own listener and no other; `listen` is where it really goes.
    """

    guest_port: int
    listen: Endpoint
    allow: tuple[Endpoint, ...]

    def may_listen(self, wanted: Endpoint | None) -> bool:
        return wanted is not None and wanted.port == self.guest_port

    def may_connect(self, wanted: Endpoint | None) -> bool:
        return wanted is not None and wanted in self.allow
