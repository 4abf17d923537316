"""A KVM that can't be used is told with what to do."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from krunclient.errors import HostError, LaunchError, PermissionDeniedError, VmError
from krunclient.host import kvm


def test_none_and_what_is_something_else_are_lacking(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such file or directory; load kvm_intel"):
        kvm.check(str(tmp_path / "missing"))
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="inappropriate ioctl"):
        kvm.check(str(tmp_path / "file"))


def fail_to_open(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (errno.EACCES, PermissionDeniedError, "let this user look into its directory"),
        (errno.EPERM, PermissionDeniedError, "let this container or unit have the device"),
        (errno.EBUSY, HostError, "end the other hypervisor"),
        (errno.ENODEV, HostError, "load kvm_intel or kvm_amd"),
        (errno.ENXIO, HostError, "load kvm_intel or kvm_amd"),
        (errno.EMFILE, VmError, "see which limit has been reached"),
        (errno.ENOMEM, VmError, "see which limit has been reached"),
    ],
)
def test_each_errno_has_its_status_and_its_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[LaunchError], remedy: str
) -> None:
    fail_to_open(monkeypatch, code)
    with pytest.raises(kind, match=remedy):
        kvm.check("/nowhere/kvm")


NOBODYS_GROUP = 64123  # no group has this number


@pytest.mark.parametrize(
    ("mode", "members", "why", "remedy"),
    [
        (0o600, [], "vms 0600", "setfacl -m u:me:rw"),
        (0o660, [], "vms 0660", "usermod -aG vms me as root, and log in anew"),
        (0o660, ["me"], "vms 0660", "log in anew: me is in the group vms"),
    ],
)
def test_a_user_who_may_not_open_it_is_told_who_may_and_how_to_get_there(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mode: int,
    members: list[str],
    why: str,
    remedy: str,
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    status = list(os.stat(device))
    status[stat.ST_GID] = NOBODYS_GROUP
    monkeypatch.setattr(os, "stat", lambda _path: os.stat_result(status))
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr(
        grp, "getgrgid", lambda _gid: SimpleNamespace(gr_name="vms", gr_mem=members)
    )
    fail_to_open(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionDeniedError) as caught:
        kvm.check(str(device))
    assert caught.value.why == f"permission denied: me:{why}"
    assert remedy in caught.value.remedy


def test_an_acl_is_told(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert "ACL" not in kvm.rights(str(device))
    # Version 2; the owner, user 65534, the group, the mask, others: acl(5) in its kernel's form.
    entries = [(1, 6, -1), (2, 6, 65534), (4, 4, -1), (16, 6, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(device, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"this file system has no ACLs: {error}")
    assert kvm.rights(str(device)).endswith(" 0660, with an ACL")


def test_an_owner_without_a_name_is_told_by_number(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, NOBODYS_GROUP, NOBODYS_GROUP)
    assert kvm.rights(str(device)).startswith(f"{NOBODYS_GROUP}:{NOBODYS_GROUP} ")
