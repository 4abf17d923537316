"""Frozen values with named fields: what the stages of a launch hand to each other.

The standard library's dataclasses would serve; importing them costs a launch about 10 ms,
more than everything else in this package together.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, TypeVar

    from typing_extensions import dataclass_transform

    Self = TypeVar("Self", bound="Record")
else:

    def dataclass_transform(**_options: object):
        return lambda cls: cls


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """A value whose fields are its class's annotations, given by keyword and never changed.

    A class attribute of a field's name is its default. Raises TypeError for a field that is
    missing or unknown.
    """

    _fields: ClassVar[Mapping[str, None]] = {}

    def __init_subclass__(cls) -> None:
        annotations = cls.__dict__.get("__annotations__", ())  # noqa: RUF063, inspect is slow
        cls._fields = {**cls._fields, **dict.fromkeys(annotations)}

    def __init__(self, **values: Any) -> None:
        fields = self._fields
        if not values.keys() <= fields.keys():
            unknown = next(name for name in values if name not in fields)
            raise TypeError(f"{type(self).__name__} has no field {unknown!r}")
        if len(values) < len(fields):
            for name in fields:
                if name not in values and not hasattr(type(self), name):
                    raise TypeError(f"{type(self).__name__} needs the field {name!r}")
        self.__dict__.update(values)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of the fields, those of base classes first."""
        return tuple(cls._fields)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} can't be changed: records are frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} can't be deleted: records are frozen")

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in the order of their annotations."""
        return {name: getattr(self, name) for name in self._fields}

    def replace(self: Self, **changes: Any) -> Self:
        """The same value with some fields changed."""
        return type(self)(**{**self.as_dict(), **changes})

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Record)
            and type(self) is type(other)
            and self.as_dict() == other.as_dict()
        )

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.as_dict().values())))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({fields})"
