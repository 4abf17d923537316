"""Records are frozen values with named fields."""

from __future__ import annotations

import pytest

from krunclient.record import Record


class Point(Record):
    x: int
    y: int = 7


class Named(Point):
    name: str


def test_fields_come_by_keyword_and_from_defaults() -> None:
    assert Point(x=1).as_dict() == {"x": 1, "y": 7}
    assert Named(x=1, name="a").as_dict() == {"x": 1, "y": 7, "name": "a"}


def test_missing_and_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="needs the field 'x'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no field 'z'"):
        Point(x=1, z=2)  # type: ignore[call-arg]


def test_a_record_cant_be_changed_but_replaced() -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    assert (point.replace(x=2), point) == (Point(x=2), Point(x=1))


def test_equality_is_by_type_and_fields() -> None:
    assert Point(x=1) == Point(x=1)
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Named(x=1, name="a")
    assert len({Point(x=1), Point(x=1), Point(x=2)}) == 2


def test_repr_names_the_fields() -> None:
    assert repr(Point(x=1)) == "Point(x=1, y=7)"
