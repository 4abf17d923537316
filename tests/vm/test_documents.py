"""The commands of the documents that start VMs, as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.demo import demo
from tests.framework.documents import DOCUMENTS, IN_A_HOST, commands
from tests.framework.launch import Launcher
from tests.framework.roots import busybox_root

TYPED = {
    document.name: typed
    for document in DOCUMENTS
    if (typed := [one for one in commands(document) if one.startswith(IN_A_HOST)])
}
STATUS = 3
# These do not wait for an app's end, or have a shell without input in its place.
WELL = re.compile(r"mkdir |.* --(check|list|plan|exec) ?")
PLACEHOLDERS = {"ROOT_PATH": "/srv/app", " PORT": " 30080"}
# The directories and the name that the documents speak of, for these commands alone.
HOST = """
mount -t tmpfs none /srv && mount -t tmpfs none /var/lib || exit 1
mkdir -p /srv/data /var/lib/node_exporter/textfile
cp -a app /srv/app
{ cat /etc/hosts; echo 10.0.0.9 db.example; } >hosts && mount --bind hosts /etc/hosts || exit 1
"""


def test_the_demo_answers() -> None:
    assert demo.run() == 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", TYPED)
def test_each_command_of_a_document_does_what_it_says(
    launcher: Launcher, scratch: Path, passt: Path, document: str
) -> None:
    directory = scratch / document
    busybox_root(directory / "app", f"exit {STATUS}")
    script = HOST
    for command in TYPED[document]:
        for placeholder, value in PLACEHOLDERS.items():
            command = command.replace(placeholder, value)
        script += f"{command.replace('/dev/shm/', '/srv/')} </dev/null >&2; echo $?\n"
    programs = [Path(launcher.command[0]).parent, passt.parent, "/usr/bin", "/bin", "/usr/sbin"]
    result = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", script],
        cwd=directory,
        env={**launcher.environment, "PATH": ":".join(map(str, programs))},
        capture_output=True,
        text=True,
    )
    expected = [0 if WELL.match(command) else STATUS for command in TYPED[document]]
    assert [int(line) for line in result.stdout.split()] == expected, result.stderr
