"""Values are gone from what /proc shows of the process."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from krunclient.supervisor import memory
from tests.framework.paths import TOP

SCRIPT = """
from krunclient.supervisor import memory
memory.hide_values([b"--env"])
print(open("/proc/self/environ").read().strip("\\0"), open("/proc/self/cmdline").read())
"""


def test_the_environment_and_the_values_of_env_are_overwritten() -> None:
    command = [sys.executable, "-c", SCRIPT, "--env", "A=hidden", "--env=B=hidden", "kept"]
    environment = {"PYTHONPATH": str(TOP), "SECRET": "hidden"}
    shown = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert b"hidden" not in shown
    assert b"PYTHONPATH" not in shown
    assert b"--env\0A=******\0--env=B=******\0kept\0" in shown


@given(st.binary(max_size=60))
def test_words_keep_their_number_and_length(area: bytes) -> None:
    hidden = memory.hide_in_words(area, [b"--env"], len(area.split(b"\0")) - 1)
    assert [len(word) for word in hidden.split(b"\0")] == [len(word) for word in area.split(b"\0")]


def test_arguments_of_the_app_and_names_alone_are_kept() -> None:
    area = b"krunclient\0--env\0NAME\0--\0--env\0A=b\0"
    assert memory.hide_in_words(area, [b"--env"], len(area.split(b"\0")) - 1) == area


def test_pythons_own_words_are_no_option_and_no_end_of_the_options() -> None:
    area = b"python3\0--\0krunclient\0--env\0A=hidden\0--\0--env=B=shown\0"
    assert memory.hide_in_words(area, [b"--env"], 4) == area.replace(b"A=hidden", b"A=******")
