"""A secret shows itself nowhere but in `reveal`."""

from __future__ import annotations

import json
import pickle

import pytest

from krunclient.record import Record
from krunclient.secret import Secret


class Holder(Record):
    secret: Secret


def test_no_way_of_printing_shows_the_text() -> None:
    secret = Secret("hidden")
    for shown in (f"{secret}", f"{secret!r}", f"{secret:>20}", str([secret]), "%s" % secret):  # noqa: UP031
        assert "hidden" not in shown
    assert "hidden" not in repr(Holder(secret=secret))


def test_reveal_gives_the_text() -> None:
    assert Secret("hidden").reveal() == "hidden"
    assert Secret("hidden") == Secret("hidden") != Secret("other")


def test_a_secret_goes_into_no_file() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret("hidden"))
    with pytest.raises(TypeError):
        json.dumps(Secret("hidden"))
