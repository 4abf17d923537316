"""How a C function is declared: its types and its check in a decorator, on a typed method.

    class Libc(Library):
        @function(ERRNO, c_int, c_ulong)
        def prctl(self, option: int, value: int) -> int: ...

`Library` replaces each such method by the C function of that name. Python's type checker sees
the method, ctypes sees the C types, and the check turns a failure into an exception, so that no
caller looks at errno.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_long, c_ssize_t, c_void_p

from krunclient.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    Method = TypeVar("Method", bound=Callable[..., Any])
    ErrorCheck = Callable[[Any, Any, tuple[Any, ...]], Any]


class Result(Record):
    """A C result type and the check that each call's result goes through."""

    restype: Any
    check: ErrorCheck


class Declaration(Record):
    result: Result
    argtypes: tuple[Any, ...]
    optional: bool
    syscall: bool


class MissingSymbolError(Exception):
    """A library has no function of this name."""


def function(
    result: Result,
    *argtypes: Any,
    optional: bool = False,
    syscall: bool = False,
) -> Callable[[Method], Method]:
    """Declare the C function that has the method's name.

    An `optional` one may be missing from the library: `Library.has` tells. A `syscall` is a system
    call that the C library has no function for: it is made by number, through syscall(2).
    """

    def declare(method: Method) -> Method:
        method.__dict__["declaration"] = Declaration(
            result=result, argtypes=argtypes, optional=optional, syscall=syscall
        )
        return method

    return declare


class Library:
    """A loaded C library. `syscalls` has the numbers of this architecture's system calls.

    Raises MissingSymbolError if a function that is not optional is missing.
    """

    def __init__(
        self, library: ctypes.CDLL, syscalls: Mapping[str, int | None] | None = None
    ) -> None:
        self._present: dict[str, bool] = {}
        for name, method in vars(type(self)).items():
            declaration = getattr(method, "declaration", None)
            if declaration is not None:
                self._present[name] = self._bind(library, name, declaration, syscalls or {})

    def _bind(
        self,
        library: ctypes.CDLL,
        name: str,
        declaration: Declaration,
        syscalls: Mapping[str, int | None],
    ) -> bool:
        """Replace the method of this name by the C function. Returns whether there is one."""
        try:
            # CDLL[name] makes a function object of our own each time: no types are shared.
            symbol = library["syscall" if declaration.syscall else name]
        except AttributeError:
            if declaration.optional:
                return False
            raise MissingSymbolError(name) from None
        leading = (c_long,) if declaration.syscall else ()
        symbol.argtypes = (*leading, *declaration.argtypes)
        symbol.restype = declaration.result.restype
        symbol.errcheck = _named(name, declaration.result.check)
        setattr(self, name, _numbered(symbol, syscalls[name]) if declaration.syscall else symbol)
        return True

    def has(self, name: str) -> bool:
        """Whether the library has this function. Raises KeyError for one that is not declared:
        a misspelt name must not pass for a missing function.
        """
        return self._present[name]


def _numbered(syscall: Any, number: int | None) -> Callable[..., int]:
    return lambda *arguments: syscall(number, *arguments)


def _named(name: str, check: ErrorCheck) -> ErrorCheck:
    return lambda result, _function, arguments: check(name, result, arguments)


def _negative_is_errno(name: str, result: int, _arguments: tuple[Any, ...]) -> int:
    """Raise OSError with the C library's errno if the result is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _unchecked(_name: str, result: Any, _arguments: tuple[Any, ...]) -> Any:
    return result


ERRNO = Result(restype=c_int, check=_negative_is_errno)
ERRNO_SIZE = Result(restype=c_ssize_t, check=_negative_is_errno)
UNCHECKED_POINTER = Result(restype=c_void_p, check=_unchecked)
UNCHECKED_STRING = Result(restype=c_char_p, check=_unchecked)
