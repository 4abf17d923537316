"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.framework.documents import DOCUMENTS
from tests.framework.paths import TOP

EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
TESTS = "\n".join(path.read_text() for path in (TOP / "tests").rglob("test_*.py"))
# Where a path in a document may begin.
ROOTS = (TOP, TOP / "krunclient", TOP / "tests")


@EACH
def test_each_test_that_is_named_exists(document: Path) -> None:
    for name in re.findall(r"`(test_\w+)`", document.read_text()):
        assert f"def {name}(" in TESTS, name


@EACH
def test_each_file_that_is_named_exists(document: Path) -> None:
    for path in re.findall(r"`([\w./-]+(?:\.py|\.c|\.md|\.txt|/))`", document.read_text()):
        if not path.startswith(("/", "build/", "dist/")):
            assert any((root / path).exists() for root in ROOTS), path


@EACH
def test_each_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]
        assert not anchor or anchor in anchors, link
