"""For all tests: a machine under load is no failure of a property."""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):  # the tests on VMs do without
    from hypothesis import settings

    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
