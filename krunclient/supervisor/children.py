"""Forks a child that is to be supervised, with a pipe for each thing that is said."""

from __future__ import annotations

import os

from krunclient import report
from krunclient.errors import VmError, unexpected
from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    Main = Callable[[int, tuple[int, ...]], NoReturn]


class Child(Record):
    """Its process id, a pidfd of it, and this process's ends of its pipes."""

    pid: int
    pidfd: int
    log: int
    report: int
    go: int


def start(main: Main, *handed: int) -> Child:
    """Fork a child that runs `main`, which gets the supervisor's process id and descriptors: of its
    log, its report, and the leave to go on, then those of `handed`. Raises OSError.
    """
    log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
    report_reader, report_writer = os.pipe2(os.O_CLOEXEC)
    go_reader, go_writer = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            for descriptor in (log_reader, report_reader, go_writer):
                os.close(descriptor)
            main(supervisor, (log_writer, report_writer, go_reader, *handed))
        except BaseException as error:
            # It did not even come to its own code, for want of a descriptor or a cgroup, say.
            report.send_error(report_writer, unexpected(error))
        finally:
            os._exit(VmError.status)
    for descriptor in (log_writer, report_writer, go_reader):
        os.close(descriptor)
    pidfd = os.pidfd_open(pid)
    return Child(pid=pid, pidfd=pidfd, log=log_reader, report=report_reader, go=go_writer)
