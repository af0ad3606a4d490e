"""Named tuples are what typing's would be."""

from __future__ import annotations

import typing

import pytest

from grit_runtime.startup import named
from grit_runtime.startup.named import NamedTuple


class Place(NamedTuple):
    """A place."""

    name: str
    at: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        return len(self.at)

    @classmethod
    def top(cls) -> Place:
        return cls("top")

    def __str__(self) -> str:
        return f"<{self.name}>"


class TypingsPlace(typing.NamedTuple):
    """A place."""

    name: str
    at: tuple[int, ...] = ()


def test_it_has_fields_defaults_and_what_its_body_says() -> None:
    place = Place("here", at=(1, 2))
    assert tuple(place) == ("here", (1, 2))
    assert (place.depth, str(place), Place.top()) == (2, "<here>", ("top", ()))
    assert place._replace(name="there")._asdict() == {"name": "there", "at": (1, 2)}
    assert (Place.__doc__, Place.__module__, Place.__name__) == ("A place.", __name__, "Place")


def test_it_differs_in_nothing_from_typings() -> None:
    assert Place._fields == TypingsPlace._fields
    assert Place._field_defaults == TypingsPlace._field_defaults
    assert named.types(Place) == typing.get_type_hints(TypingsPlace)
    with pytest.raises(TypeError):
        Place()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        Place("here").name = "there"  # type: ignore[misc]
