"""Each command of the documents is run: here, by the tests on microVMs, or as is said here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework import images
from tests.framework.documents import DOCUMENTS, IN_A_HOST, commands
from tests.framework.guests import BUSYBOX
from tests.framework.paths import TOP

SLURM = "test_three_vms_are_placed_each_on_its_own_port_and_end_with_true_statuses"
# The test that runs them with other words, or what else does.
ELSEWHERE = {
    "dist-scripts/nox": "this is in it",
    "dist-scripts/nox -s demo": "test_the_demo_answers",
    "dist-scripts/nox -s tests": "this is in it",
    "dist-scripts/nox -s vm": "it is in `dist-scripts/nox`",
    "podman save --format oci-archive -o image.tar IMAGE": "podman's",
    "ps -C krun:ready,krun:unhealthy": (
        "test_five_vms_are_shown_as_they_are_and_nothing_of_them_is_left"
    ),
    "sbatch dist-scripts/managers/krunclient.sbatch /srv/app --bind 0.0.0.0": SLURM,
    "scancel 2": SLURM,
    "sudo apt-get install passt": "Debian's",
    (
        "systemd-run --scope -p Delegate=yes krunclient --cpu-quota 50 --memory-max 700"
        " /srv/app 30080"
    ): "test_a_stop_reaches_a_vm_that_has_next_to_no_processor",
    "(cd build/nexushub && zip -qr ../github_com__tomyedwab__yesterday__libkrun.zip .)": "zip's",
    "unzip -oq github_com__tomyedwab__yesterday__libkrun.zip -d INSTANCE": "unzip's",
}
ALL = sorted({command for document in DOCUMENTS for command in commands(document)})
HERE = [one for one in ALL if one not in ELSEWHERE and not one.startswith(IN_A_HOST)]
SOURCES = {"SERVER": "program", "server": "program", "image.tar": "image.tar", "app": "app"}


def test_what_is_run_elsewhere_is_in_a_document_and_so_is_its_test() -> None:
    tests = "\n".join(path.read_text() for path in (TOP / "tests").rglob("test_*.py"))
    assert set(ELSEWHERE) <= set(ALL)
    for where in ELSEWHERE.values():
        assert not where.startswith("test_") or f"def {where}(" in tests, where


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands are given, and a `sudo` that has its own /usr/local."""
    directory = tmp_path_factory.mktemp("commands")
    shutil.copy2(BUSYBOX, directory / "program")
    layer = directory / "layer/bin"
    layer.mkdir(parents=True)
    shutil.copy2(BUSYBOX, layer / "busybox")
    config = {"config.cmd": ["/bin/busybox", "httpd", "-f", "-p", "80"]}
    images.archive(images.make(directory / "image", layer.parent, **config))
    sudo = directory / "bin/sudo"
    sudo.parent.mkdir()
    mount = f"mount --bind {directory}/local /usr/local"
    (directory / "local/bin").mkdir(parents=True)
    script = f'exec unshare --map-root-user --mount sh -c \'{mount} && exec "$@"\' sh "$@"\n'
    sudo.write_text(f"#!/bin/sh\n{script}")
    sudo.chmod(0o755)
    return directory


@pytest.mark.parametrize("command", HERE)
def test_a_command_of_the_documents_runs(command: str, directory: Path) -> None:
    words = shlex.split(command)
    if " tests/" in command:  # it runs tests: they are looked for
        first = next(index for index, word in enumerate(words) if word.startswith("tests/"))
        tests = words[first:]
        words = [sys.executable, "-m", "pytest", "--collect-only", "-q", *tests]
    if "app" in words[:4]:
        shutil.rmtree(directory / "app", ignore_errors=True)
        words = [*words[:4], *(str(directory / SOURCES[word]) for word in words[4:])]
    environment = {
        "PATH": f"{directory}/bin:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": os.environ["PYTHONPATH"] if words[0] == sys.executable else "",
    }
    result = subprocess.run(words, cwd=TOP, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result
    if "app" in words[:4]:
        assert os.access(directory / "app/bin/app", os.X_OK)
    if words[0] == "sudo":
        installed = directory / "local" / Path(words[-1]).relative_to("/usr/local")
        assert (installed / "krunclient").is_file() or installed.is_file()
