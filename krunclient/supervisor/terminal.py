"""--console at a terminal: the guest's console is a pseudo-terminal, pty(7), behind the user's own.

The VMM gets one end; the other is held here, and what is typed and shown goes through this process.
So the VMM has no hold of the user's terminal, and a stop can be typed on the guest's console.
"""

from __future__ import annotations

import errno
import os
import termios
from fcntl import ioctl

from krunclient.bindings.libc import (
    SFD_NONBLOCK_CLOEXEC,
    SIG_BLOCK,
    SIGNALFD_RECORD_BYTES,
    SIGWINCH,
    SignalSet,
)
from krunclient.errors import foreign_terminal
from krunclient.log import write_all
from krunclient.supervisor.loop import PIPE_READ_BYTES, READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.bindings.libc import Libc
    from krunclient.supervisor.loop import Loop

CTRL_C = b"\x03"
WINSIZE = bytes(8)  # struct winsize, ioctl_tty(2)
IFLAG, OFLAG, CFLAG, LFLAG, CC = 0, 1, 2, 3, 6  # of what tcgetattr(3) gives


class Terminal:
    """From its making to `restore`, the user's terminal is in raw mode: each key is the guest's."""

    def __init__(self, libc: Libc) -> None:
        """Raises PermissionDeniedError for a terminal of another user's, OSError."""
        self._libc = libc
        # Descriptions of our own, which don't block: the terminal's are shared with others.
        self._typed = _open_anew(0, os.O_RDONLY)
        self._to_show = _open_anew(1, os.O_WRONLY)
        self._master, self._slave = os.openpty()
        self._kept: dict[int, int] = {}
        self._shown: _Carrier | None = None
        self._copy_size()
        try:
            self._before = termios.tcgetattr(0)
            termios.tcsetattr(self._slave, termios.TCSANOW, _raw(self._before, output=True))
            # What this process and libkrun say still has ends of lines that a terminal needs.
            termios.tcsetattr(0, termios.TCSANOW, _raw(self._before, output=False))
        except termios.error as error:
            raise OSError(
                error.args[0], "standard input: it is no terminal that can be set"
            ) from None

    def enter(self) -> None:
        """Those forked from now on have the guest's end for each terminal among 0, 1 and 2."""
        self._kept = {number: os.dup(number) for number in (0, 1, 2) if os.isatty(number)}
        for number in self._kept:
            os.dup2(self._slave, number)

    def leave(self) -> None:
        for number, own in self._kept.items():
            os.dup2(own, number)
            os.close(own)
        os.close(self._slave)

    def connect(self, loop: Loop, vmm: int) -> None:
        """Carry what is typed and shown, and the size, from now on."""
        os.set_blocking(self._master, False)
        _Carrier(loop, self._typed, os.dup(self._master))
        self._shown = _Carrier(loop, self._master, self._to_show)
        window = SignalSet.of(SIGWINCH)
        self._libc.sigprocmask(SIG_BLOCK, window, None)
        changes = self._libc.signalfd(-1, window, SFD_NONBLOCK_CLOEXEC)

        def on_change() -> None:
            os.read(changes, SIGNALFD_RECORD_BYTES)
            self._copy_size()
            os.kill(vmm, SIGWINCH)

        loop.watch(changes, READABLE, on_change)

    def type_ctrl_c(self) -> None:
        """On the guest's console. A guest that takes no more input does not hear of it."""
        try:
            os.write(self._master, CTRL_C)
        except OSError:
            pass

    def restore(self) -> None:
        """Show what is left, and give the user's terminal back as it was."""
        if self._shown is not None:
            self._shown.finish()
        try:
            termios.tcsetattr(0, termios.TCSANOW, self._before)
        except termios.error:
            pass  # it has hung up

    def _copy_size(self) -> None:
        try:
            ioctl(self._master, termios.TIOCSWINSZ, ioctl(0, termios.TIOCGWINSZ, WINSIZE))
        except OSError:
            pass  # it has none


class _Carrier:
    """From one descriptor to another, a piece at a time, at the pace of who reads it."""

    def __init__(self, loop: Loop, source: int, sink: int) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._piece = b""
        loop.watch(source, READABLE, self._on_readable)

    def finish(self) -> None:
        """Carry what is left, as long as somebody takes it."""
        while write_all(self._sink, self._piece) and (data := _read(self._source)):
            self._piece = data

    def _on_readable(self) -> None:
        data = _read(self._source)
        if data is None:  # another process has read it
            return
        self._loop.unwatch(self._source)
        self._piece = data
        if data:
            self._loop.watch(self._sink, WRITABLE, self._on_writable)

    def _on_writable(self) -> None:
        try:
            self._piece = self._piece[os.write(self._sink, self._piece) :]
        except BlockingIOError:
            return
        except OSError:
            self._piece = b""  # nobody reads it any more
        if not self._piece:
            self._loop.unwatch(self._sink)
            self._loop.watch(self._source, READABLE, self._on_readable)


def _open_anew(number: int, flags: int) -> int:
    try:
        flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{number}", flags)
    except PermissionError as error:
        stream = "standard output" if number else "standard input"
        raise foreign_terminal(stream, error) from None


def _read(descriptor: int) -> bytes | None:
    """What is there, None for nothing yet, nothing at the end. Raises OSError."""
    try:
        return os.read(descriptor, PIPE_READ_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:  # the other end is closed
            return b""
        raise


def _raw(attributes: list, *, output: bool) -> list:  # type: ignore[type-arg]
    """As cfmakeraw(3) has it: nothing that is typed is changed, shown or taken for a signal. With
    `output`, nor is what is written.
    """
    raw = list(attributes)
    raw[IFLAG] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    raw[IFLAG] &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    raw[LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[CFLAG] = raw[CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[CC] = list(raw[CC])
    raw[CC][termios.VMIN], raw[CC][termios.VTIME] = 1, 0
    if output:
        raw[OFLAG] &= ~termios.OPOST
    return raw
