"""What a libkrun can do has one name for each optional function, and none that is misspelt."""

from __future__ import annotations

from krunclient.bindings.libkrun import Krun
from krunclient.model import Features
from tests.framework.stages import V1_13, V1_19, V2


def test_the_features_are_the_optional_functions() -> None:
    optional = {name for name, declared in Krun.functions().items() if declared.optional}
    assert set(Features.field_names()) == optional


def test_the_generation_is_told_by_the_root() -> None:
    assert [one.generation for one in (V1_13, V1_19, V2)] == ["1.x", "1.x", "2.x"]
