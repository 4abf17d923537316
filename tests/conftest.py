"""For all tests: a machine under load is no failure of a property."""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):  # the tests on VMs do without
    from hypothesis import settings

    # Nor is a checkout that can't be written to.
    settings.register_profile("any machine", deadline=None, database=None)
    settings.load_profile("any machine")
