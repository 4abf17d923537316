"""A KVM that can't be used is told with what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from krunclient.errors import HostError, LaunchError, PermissionDeniedError, VmError
from krunclient.host import kvm


def test_none_and_what_is_something_else_are_lacking(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such file or directory; load kvm_intel"):
        kvm.check(str(tmp_path / "missing"))
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="inappropriate ioctl"):
        kvm.check(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (errno.EACCES, PermissionDeniedError, "add the user to the group"),
        (errno.EPERM, PermissionDeniedError, "add the user to the group"),
        (errno.ENODEV, HostError, "load kvm_intel or kvm_amd"),
        (errno.EMFILE, VmError, "see which limit has been reached"),
        (errno.ENOMEM, VmError, "see which limit has been reached"),
    ],
)
def test_each_errno_has_its_status_and_its_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[LaunchError], remedy: str
) -> None:
    def fail(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(kind, match=remedy):
        kvm.check()
