"""A failed call has one status, in whichever process it fails."""

from __future__ import annotations

import errno
import os

import pytest

from krunclient import errors
from krunclient.errors import HostError, LaunchError, UsageError, VmError, failed_call, unexpected

CODES = sorted(errno.errorcode)


@pytest.mark.parametrize("code", CODES)
def test_what_runs_out_is_70_and_what_a_host_lacks_is_69(code: int) -> None:
    wanted = VmError if code in errors.LIMITS else HostError
    by_name = failed_call("what", "thing", OSError(code, ""), "do that")
    by_itself = unexpected(OSError(code, f"mount: {os.strerror(code)}"))
    assert type(by_name) is type(by_itself) is wanted
    assert by_itself.thing == "mount"
    assert by_itself.why == os.strerror(code).lower()


def test_no_memory_is_no_memory_whether_python_or_the_kernel_says_so() -> None:
    error = unexpected(MemoryError())
    assert (error.status, error.why) == (70, "cannot allocate memory")


def test_a_part_of_python_that_does_not_fit_is_told_as_the_loader_tells_it() -> None:
    why = "failed to map segment from shared object"
    error = unexpected(ImportError(f"libffi.so.8: {why}", path="/lib/python3/_ctypes.so"))
    assert (error.status, error.thing, error.why) == (70, "libffi.so.8", why)
    ours = unexpected(ImportError("cannot import name 'x'", path="/krunclient/errors.py"))
    assert ours.thing == "ImportError"
    damaged = unexpected(ImportError("x is damaged", path="/copy/later"))
    assert (damaged.status, damaged.thing) == (70, "/copy/later")
    assert "report it" in ours.remedy


def test_an_error_that_was_meant_stays_as_it_is() -> None:
    meant = UsageError("a", "b", "c", "d")
    assert unexpected(meant) is meant


def test_any_other_is_told_by_its_type_and_place_and_not_by_its_text() -> None:
    with pytest.raises(AttributeError) as caught:
        errors.reason("hidden")  # type: ignore[arg-type]
    error = unexpected(caught.value)
    assert error.thing == "AttributeError"
    assert "krunclient.errors.reason:" in error.why
    assert "hidden" not in str(error)


def test_every_kind_has_a_status_of_its_own() -> None:
    kinds = [kind for kind in errors.by_name().values() if kind is not LaunchError]
    assert sorted(kind.status for kind in kinds) == [64, 66, 69, 70, 75, 77]
