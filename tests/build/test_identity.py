"""What a copy of the executable's code is named after."""

from __future__ import annotations

from build import identity


def test_a_copy_has_another_name_if_anything_that_made_it_is_another() -> None:
    first = identity("packed", [b"LAUNCH = ()"])
    assert identity("packed", [b"LAUNCH = ()"]) == first
    assert identity("packed otherwise", [b"LAUNCH = ()"]) != first
    assert identity("packed", [b"LAUNCH = ('krunclient',)"]) != first
