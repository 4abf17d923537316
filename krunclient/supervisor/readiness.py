"""Whether the app has started, whether the mapped port accepts connections, and how soon."""

from __future__ import annotations

import os
import time

from krunclient.supervisor import tcptable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from krunclient.supervisor.loop import Loop

LOOKING_SECONDS = 0.2
POLL_SECONDS = 0.05
# Standard input, output and error are what krunclient was given: a file of any name.
GIVEN = ("0", "1", "2")


def app_has_started(vmm: int, exec_path: str) -> bool:
    """Whether the guest has come to its app: libkrun's virtio-fs server keeps a descriptor of each
    file that the guest has looked up, and nothing looks the program up before init executes it.

    Raises OSError.
    """
    descriptors = f"/proc/{vmm}/fd"
    name = os.path.basename(exec_path)
    deadline = time.monotonic() + LOOKING_SECONDS
    for descriptor in set(os.listdir(descriptors)).difference(GIVEN):
        if time.monotonic() > deadline:
            return True  # only a guest that runs has so many
        try:
            target = os.readlink(f"{descriptors}/{descriptor}")
        except FileNotFoundError:
            continue  # closed meanwhile
        # The way to the program may lead over symbolic links; its name stays.
        if os.path.basename(target) == name:
            return True
    return False


def is_listening(port: int) -> bool:
    """Whether anything on this host listens on a TCP port."""
    ends = b":%04X" % port
    return any(
        local.endswith(ends) and state == tcptable.LISTEN for local, _, state in tcptable.sockets()
    )


def when_listening(loop: Loop, port: int, done: Callable[[], None]) -> None:
    """Call `done` when anything listens on a port, unless the phase has ended before. Without a
    sandbox nobody tells that: the host's table of sockets is read.
    """
    if is_listening(port):
        done()
    else:
        loop.start_timer("listener", POLL_SECONDS, lambda: when_listening(loop, port, done))
