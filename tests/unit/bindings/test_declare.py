"""C functions are declared once, typed, and checked at every call."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_int

import pytest

from krunclient.bindings.declare import ERRNO, Library, MissingSymbolError, function
from krunclient.bindings.libc import SignalSet
from tests.framework.stages import LIBC


class Some(Library):
    @function(ERRNO, c_int)
    def close(self, descriptor: int, /) -> int: ...

    @function(ERRNO, optional=True)
    def no_such_function(self) -> int: ...


class Lacking(Library):
    @function(ERRNO)
    def no_such_function(self) -> int: ...


def open_libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def test_a_failing_function_raises_oserror_with_its_name_and_errno() -> None:
    with pytest.raises(OSError, match="close: Bad file descriptor") as caught:
        Some(open_libc()).close(-1)
    assert caught.value.errno == errno.EBADF


def test_a_function_that_succeeds_returns_its_result() -> None:
    assert Some(open_libc()).close(os.dup(0)) == 0


def test_a_missing_function_is_an_error_unless_it_is_optional() -> None:
    assert not Some(open_libc()).has("no_such_function")
    assert Some(open_libc()).has("close")
    Some(open_libc()).require()
    with pytest.raises(MissingSymbolError, match="no_such_function"):
        Lacking(open_libc()).require()
    with pytest.raises(MissingSymbolError, match="no_such_function"):
        Lacking(open_libc()).no_such_function()


def test_a_function_is_made_once_for_each_library_and_keeps_its_types_to_itself() -> None:
    one, other = Some(open_libc()), Some(open_libc())
    assert one.close is one.close
    assert one.close is not other.close


def test_whether_a_function_lacks_that_nobody_declared_is_no_question() -> None:
    some = Some(open_libc())
    assert some.has("close")
    with pytest.raises(KeyError, match="no_such_functoin"):
        some.has("no_such_functoin")


def test_wrong_argument_types_are_refused_before_the_call() -> None:
    with pytest.raises(ctypes.ArgumentError):
        Some(open_libc()).close("one")  # type: ignore[arg-type]


def test_every_function_of_libc_is_there() -> None:
    LIBC.require()


def test_a_signal_set_has_the_bits_of_its_signals() -> None:
    assert SignalSet.of(1, 2, 15).words[0] == 0b100000000000011
