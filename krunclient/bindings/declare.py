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
    numbers: Mapping[str, int] | None


class MissingSymbolError(Exception):
    """A library has no function of this name."""


def function(
    result: Result,
    *argtypes: Any,
    optional: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> Callable[[Method], Method]:
    """Declare the C function that has the method's name.

    An `optional` one may be missing from the library: `Library.has` tells. One with `numbers` is
    a system call that the C library has no function for; the numbers are by architecture.
    """

    def declare(method: Method) -> Method:
        method.__dict__["declaration"] = Declaration(
            result=result, argtypes=argtypes, optional=optional, numbers=numbers
        )
        return method

    return declare


class Library:
    """A loaded C library. Raises MissingSymbolError where a function that is not optional lacks."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._present: set[str] = set()
        for name, method in vars(type(self)).items():
            declaration = getattr(method, "declaration", None)
            if declaration is None:
                continue
            numbers = declaration.numbers
            try:
                # CDLL[name] makes a function object of our own each time: no types are shared.
                symbol = library["syscall" if numbers else name]
            except AttributeError:
                if declaration.optional:
                    continue
                raise MissingSymbolError(name) from None
            leading = (c_long,) if numbers else ()
            symbol.argtypes = (*leading, *declaration.argtypes)
            symbol.restype = declaration.result.restype
            symbol.errcheck = _named(name, declaration.result.check)
            setattr(self, name, _numbered(symbol, numbers) if numbers else symbol)
            self._present.add(name)

    def has(self, name: str) -> bool:
        """Whether the library has this function, declared here."""
        return name in self._present


def _numbered(syscall: Any, numbers: Mapping[str, int]) -> Callable[..., int]:
    number = numbers[os.uname().machine]
    return lambda *arguments: syscall(number, *arguments)


def _named(name: str, check: ErrorCheck) -> ErrorCheck:
    return lambda result, _function, arguments: check(name, result, arguments)


def _negative_is_errno(name: str, result: int, _arguments: tuple[Any, ...]) -> int:
    """Raise OSError with the C library's errno where the result is negative."""
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
