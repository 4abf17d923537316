"""How a C function is declared: its types and its check in a decorator, on a typed method.

    class Libc(Library):
        @function(ERRNO, c_int, c_ulong)
        def prctl(self, option: int, value: int) -> int: ...

A `Library` makes the C function of such a method when that is first looked up: of those declared,
a launch calls a part. Python's type checker sees the method, ctypes sees the C types, and the check
turns a failure into an exception, so that no caller looks at errno.
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


class MissingSymbolError(Exception):
    """A library has no function of this name."""


class Function:
    """A declared function: in its class a descriptor, which puts the C function in its place."""

    __slots__ = ("argtypes", "name", "optional", "result", "syscall")

    def __init__(
        self, result: Result, argtypes: tuple[Any, ...], *, optional: bool, syscall: bool
    ) -> None:
        self.result = result
        self.argtypes = argtypes
        self.optional = optional
        self.syscall = syscall

    def __set_name__(self, _owner: type, name: str) -> None:
        self.name = name

    def __get__(self, library: Library | None, _owner: type) -> Any:
        if library is None:
            return self
        bound = library.bind_function(self)
        library.__dict__[self.name] = bound  # which is found there before this
        return bound


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
    declared = Function(result, argtypes, optional=optional, syscall=syscall)
    return lambda _method: declared  # type: ignore[return-value]


class Library:
    """A loaded C library. `syscalls` has the numbers of this architecture's system calls.

    A function that is looked up and that the library lacks raises MissingSymbolError.
    """

    def __init__(
        self, library: ctypes.CDLL, syscalls: Mapping[str, int | None] | None = None
    ) -> None:
        self._library = library
        self._syscalls = syscalls or {}

    def bind_function(self, declared: Function) -> Callable[..., Any]:
        """The C function, with its types and its check. Raises MissingSymbolError."""
        symbol = self._symbol(declared)
        leading = (c_long,) if declared.syscall else ()
        symbol.argtypes = (*leading, *declared.argtypes)
        symbol.restype = declared.result.restype
        symbol.errcheck = _named(declared.name, declared.result.check)
        if declared.syscall:
            return _numbered(symbol, self._syscalls[declared.name])
        return symbol  # type: ignore[no-any-return]

    def has(self, name: str) -> bool:
        """Whether the library has this function. Raises KeyError for one that is not declared:
        a misspelt name must not pass for a missing function.
        """
        try:
            self._symbol(self.functions()[name])
        except MissingSymbolError:
            return False
        return True

    def require(self) -> None:
        """Raises MissingSymbolError if a function that is not optional is missing."""
        for declared in self.functions().values():
            if not declared.optional:
                self._symbol(declared)

    @classmethod
    def functions(cls) -> dict[str, Function]:
        """All that are declared, by name."""
        return {name: one for name, one in vars(cls).items() if isinstance(one, Function)}

    def _symbol(self, declared: Function) -> Any:
        try:
            # CDLL[name] makes a function object of our own each time: no types are shared.
            return self._library["syscall" if declared.syscall else declared.name]
        except AttributeError:
            raise MissingSymbolError(declared.name) from None


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
