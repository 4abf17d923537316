"""The one type for values that must not be printed."""

from __future__ import annotations


class Secret:
    """Text that shows itself as `***` wherever it is printed, logged or formatted.

    `reveal` is the only way to the text: search for it to see where secrets go.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"

    def __format__(self, _spec: str) -> str:
        return "***"

    def __reduce__(self) -> str:
        raise TypeError("a Secret can't be pickled or copied into a file")
