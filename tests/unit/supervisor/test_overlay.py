"""An overlay directory is its user's alone, and one VM's at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from krunclient.errors import BusyError, HostError, LaunchError, PermissionDeniedError, VmError
from krunclient.model import User
from krunclient.supervisor import overlay
from tests.framework.namespaces import UNSHARE
from tests.framework.paths import TOP
from tests.framework.users import NOBODY


def test_a_claim_lasts_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    directory = str(tmp_path / "overlay")
    held = overlay.claim(directory, None)
    with pytest.raises(BusyError, match=f"another VM has it: process {os.getpid()}"):
        overlay.claim(directory, None)
    os.close(held)
    os.close(overlay.claim(directory, None))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an overlay everywhere")
def test_the_holder_is_named_where_the_kernel_and_stat_tell_other_devices(tmp_path: Path) -> None:
    # Layers on two file systems: there overlayfs tells the layer's device by stat(2).
    mount = (
        'mount -t tmpfs none "$0" && cd "$0" && mkdir lower over merged'
        " && mount -t tmpfs none lower && mount -t tmpfs none over && mkdir over/upper over/work"
        " && mount -t overlay -o lowerdir=lower,upperdir=over/upper,workdir=over/work none merged"
        ' && cd "$OLDPWD" && exec "$@"'
    )
    script = (
        "import os, sys; from krunclient.supervisor import overlay\n"
        "held = overlay.claim(sys.argv[1], None)\n"
        "try: overlay.claim(sys.argv[1], None)\n"
        "except overlay.BusyError as error: print(f'process {os.getpid()}' in str(error))\n"
    )
    command = [*UNSHARE, "sh", "-c", mount, str(tmp_path), sys.executable, "-c", script]
    ended = subprocess.run(
        [*command, str(tmp_path / "merged/vm")], capture_output=True, text=True, cwd=TOP
    )
    assert ended.stdout == "True\n", ended


def test_it_is_made_closed_to_others_with_its_layers(tmp_path: Path) -> None:
    os.close(overlay.claim(str(tmp_path / "overlay"), None))
    assert (tmp_path / "overlay").stat().st_mode & 0o777 == 0o700
    assert {path.name for path in (tmp_path / "overlay").iterdir()} == {"upper", "work", "lock"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_is_made_as_the_user_that_the_vmm_runs_as(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:-2]:
        parent.chmod(0o755)
    place = tmp_path / "open"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    os.close(overlay.claim(str(place / "overlay"), User(uid=NOBODY, gid=NOBODY, groups=())))
    assert (place / "overlay").stat().st_uid == NOBODY
    assert (os.geteuid(), os.getegid()) == (0, 0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, PermissionDeniedError),
        (errno.ENOSPC, HostError),
        (errno.EDQUOT, HostError),
        (errno.ENOLCK, PermissionDeniedError),
        (errno.ENOMEM, VmError),
    ],
)
def test_a_lock_that_cant_be_had_has_the_status_of_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[LaunchError]
) -> None:
    def fail(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(kind, match="lock"):
        overlay.claim(str(tmp_path / "overlay"), None)
