"""What the VMM child has for input and output, and what it has not."""

from __future__ import annotations

import os

import pytest

from krunclient.errors import PermissionDeniedError
from krunclient.vmm import descriptors


def test_a_terminal_of_another_user_is_permission_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "isatty", lambda number: number == 2)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionDeniedError, match=r"standard error: .* a terminal of another"):
        descriptors.leave_the_terminal()
