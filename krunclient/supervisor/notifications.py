"""The calls that a seccomp filter stops and its supervisor answers.

Documentation/userspace-api/seccomp_filter.rst of the kernel. What a call hands over is read once,
and what it is about is a descriptor of ours: nothing can change between a check and its use.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import Structure, c_int32, c_int64, c_uint32, c_uint64

from krunclient import model
from krunclient.bindings.libc import SOCKADDR_BYTES
from krunclient.errors import failed_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from krunclient.bindings.libc import Libc
    from krunclient.errors import LaunchError
    from krunclient.model import Endpoint

# <linux/seccomp.h>
NOTIF_RECV = 0xC0502100
NOTIF_SEND = 0xC0182101
NOTIF_ID_VALID = 0x40082102
NOTIF_ADDFD = 0x40182103
ADDFD_FLAG_SETFD = 1


class Notification(Structure):
    """struct seccomp_notif, with its struct seccomp_data."""

    _fields_ = (
        ("id", c_uint64),
        ("pid", c_uint32),
        ("flags", c_uint32),
        ("number", c_int32),
        ("architecture", c_uint32),
        ("instruction_pointer", c_uint64),
        ("arguments", c_uint64 * 6),
    )


class Response(Structure):
    """struct seccomp_notif_resp."""

    _fields_ = (("id", c_uint64), ("value", c_int64), ("error", c_int32), ("flags", c_uint32))


class AddDescriptor(Structure):
    """struct seccomp_notif_addfd, Linux 5.9."""

    _fields_ = (
        ("id", c_uint64),
        ("flags", c_uint32),
        ("source", c_uint32),
        ("target", c_uint32),
        ("target_flags", c_uint32),
    )


class RefusedError(Exception):
    """The call gets this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Notifications:
    """What one process's filter tells: `listener` is readable when a call waits for its answer."""

    def __init__(self, libc: Libc, process: int, pidfd: int, listener: int) -> None:
        """Take `listener`, the number of the process's own descriptor, out of it.

        Raises OSError if that is not allowed, or the process's memory can't be read.
        """
        self._libc = libc
        self._pidfd = pidfd
        self._memory_path = f"/proc/{process}/mem"
        os.close(self.memory(os.O_RDONLY))
        self.listener = libc.pidfd_getfd(pidfd, listener, 0)

    def memory(self, flags: int) -> int:
        """A descriptor of the process's memory as it is now: another program has another one."""
        return os.open(self._memory_path, flags | os.O_CLOEXEC)

    def answer(self, calls: Mapping[int | None, Callable[[Call], int | None]]) -> None:
        """Take one call and answer it, by its number: with what the function returns, None being 0,
        or with the errno that it raises. A call that was interrupted meanwhile is gone.
        """
        notification = Notification()
        try:
            self._libc.ioctl(self.listener, NOTIF_RECV, ctypes.byref(notification))
        except OSError:
            return
        value, code = 0, 0
        try:
            call = Call(self._libc, self, self._pidfd, notification)
            value = calls[notification.number](call) or 0
        except RefusedError as refused:
            code = refused.code
        except OSError as error:
            code = error.errno or errno.EPERM
        except Exception:
            # Nothing that a process hands over may end this one: an address past all memory, say.
            code = errno.EFAULT
        response = Response(notification.id, value, -code, 0)
        try:
            self._libc.ioctl(self.listener, NOTIF_SEND, ctypes.byref(response))
        except OSError:
            pass


class Call:
    """One call that waits. Its first argument is a descriptor, if it is about one. Each method
    raises OSError.
    """

    def __init__(
        self, libc: Libc, source: Notifications, pidfd: int, notification: Notification
    ) -> None:
        self._libc = libc
        self._source = source
        self._pidfd = pidfd
        self._id = notification.id
        self.arguments = tuple(notification.arguments)

    def argument(self, position: int) -> int:
        """As the int that the call takes."""
        return c_int32(self.arguments[position]).value

    def address(self) -> Endpoint | None:
        """The address of a bind(2) or connect(2), None for one that is not IP's."""
        return model.from_sockaddr(self.sockaddr())

    def sockaddr(self) -> bytes:
        memory = self._source.memory(os.O_RDONLY)
        try:
            size = min(self.arguments[2], SOCKADDR_BYTES)
            return os.pread(memory, size, self.arguments[1])
        finally:
            os.close(memory)

    def tell_address(self, sockaddr: bytes) -> None:
        """Put it where an accept4(2) or getsockname(2) wants it."""
        where, size = self.arguments[1], self.arguments[2]
        if not where:
            return
        memory = self._source.memory(os.O_RDWR)
        try:
            room = int.from_bytes(os.pread(memory, 4, size), "little")
            os.pwrite(memory, sockaddr[:room], where)
            os.pwrite(memory, len(sockaddr).to_bytes(4, "little"), size)
        finally:
            os.close(memory)

    def socket(self) -> int:
        """Our own descriptor of the one that the call is about.

        The notification is checked after that: until then the process could have been another.
        """
        socket = self._libc.pidfd_getfd(self._pidfd, self.argument(0), 0)
        try:
            self._libc.ioctl(
                self._source.listener, NOTIF_ID_VALID, ctypes.byref(c_uint64(self._id))
            )
        except OSError:
            os.close(socket)
            raise
        return socket

    def replace(self, own: int) -> None:
        """Put a descriptor of ours in the place of the one that the call is about."""
        self._add(own, ADDFD_FLAG_SETFD, self.argument(0))

    def give(self, own: int) -> int:
        """A new descriptor of ours for the process: its number there."""
        return self._add(own, 0, 0)

    def _add(self, own: int, flags: int, number: int) -> int:
        added = AddDescriptor(self._id, flags, own, number, os.O_CLOEXEC)
        return self._libc.ioctl(self._source.listener, NOTIF_ADDFD, ctypes.byref(added))


def supervision_error(whose: str, error: OSError) -> LaunchError:
    """The error for a child whose calls this process is not allowed to supervise."""
    return failed_call(
        "the sandbox can't be made",
        f"supervision of {whose} sockets",
        error,
        "allow ptrace of a process's own children: sysctl kernel.yama.ptrace_scope=1 or less",
    )
