"""The lifeline's thread lives on every host, and does nothing there but wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from krunclient.bindings.arch import ARCHITECTURES
from tests.framework.paths import TOP

# The filter counts for the one thread: it makes a call in place of its first wait, and says so.
SOURCE = """
import ctypes, os, sys, time
from krunclient.bindings import libc
from krunclient.bindings.libc import PR_SET_NO_NEW_PRIVS
from krunclient.host.facts import find_architecture
from krunclient.sandbox import lifeline

class Calling:
    def __init__(self, real, number):
        self._real, self._number = real, number
        self._call, self._buffer = ctypes.CDLL(None).syscall, ctypes.create_string_buffer(64)
        self._call(self._number, 1, self._buffer)
        self.has_called = False

    def __getattr__(self, name):
        return getattr(self._real, name)

    def pause(self):
        if not self.has_called:
            self._call(self._number, 1, self._buffer)
            self.has_called = True
        self._real.pause()

real = libc.load(find_architecture())
real.pause
real.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
calling = Calling(real, int(sys.argv[1]))
lifeline.start(calling, find_architecture(), os.getppid())
while not calling.has_called:
    time.sleep(0.01)
os._exit(3)
"""


@pytest.mark.parametrize(
    ("call", "status"), [("clock_gettime", 3), ("personality", -signal.SIGSYS)]
)
def test_it_may_read_the_clock_where_only_the_kernel_can_and_nothing_else(
    call: str, status: int
) -> None:
    # With clocksource hpet, acpi_pm or xen, what needs no system call elsewhere is one.
    number = ARCHITECTURES[os.uname().machine].syscalls[call]
    command = [sys.executable, "-c", SOURCE, str(number)]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    assert subprocess.run(command, env=environment, timeout=20).returncode == status
