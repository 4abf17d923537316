"""What the VMM child does to itself before the walls are up."""

from __future__ import annotations

import os

import pytest

from krunclient import vmm
from krunclient.errors import PermissionDeniedError


def test_a_terminal_of_another_user_is_permission_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "isatty", lambda number: number == 2)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionDeniedError, match=r"standard error: .* a terminal of another"):
        vmm.leave_the_terminal()
