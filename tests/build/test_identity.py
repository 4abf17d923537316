"""What a copy of the executable's code is named after."""

from __future__ import annotations

from pathlib import Path

from build import identity


def test_a_copy_has_another_name_if_anything_that_made_it_is_another(tmp_path: Path) -> None:
    (tmp_path / "extract.py").write_text("LAUNCH = ()")
    first = identity("packed", tmp_path)
    assert identity("packed", tmp_path) == first
    assert identity("packed otherwise", tmp_path) != first
    (tmp_path / "extract.py").write_text("LAUNCH = ('krunclient',)")
    assert identity("packed", tmp_path) != first
