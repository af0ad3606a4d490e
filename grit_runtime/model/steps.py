"""Steps of a journal: each kind is a NamedTuple, what one journal may have is a closed union.

In the file a step is an object: its class's name in words, and its fields. Pure.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from grit_runtime.errors import NewerFormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

Step = TypeVar("Step", bound=tuple[Any, ...])
Kind = TypeVar("Kind", bound=tuple[Any, ...])


class Steps(Generic[Step]):
    """The steps of one union, as they are read; a union of one is its class.

    A kind whose fields are more than texts, numbers and lists of them has `from_json`.
    """

    def __init__(self, union: Any) -> None:
        self._kinds = {_name(kind): kind for kind in getattr(union, "__args__", (union,))}

    def read(self, line: dict[str, Any]) -> Step:
        """The step that was written as *line*, of this or an older version.

        FailedPreconditionError for what only a newer one can have written.
        """
        fields = dict(line)
        name = fields.pop("step")
        kind = self._kinds.get(name)
        if kind is None:
            raise NewerFormatError(
                f"step {name!r} is of a newer grit than this; upgrade grit on this node"
            )
        for field in sorted(fields.keys() - set(kind._fields)):
            raise NewerFormatError(
                f"step {name!r} has the field {field!r}, of a newer grit than this; upgrade grit "
                "on this node"
            )
        step: Step = getattr(kind, "from_json", kind)(
            **{field: tuple(v) if isinstance(v, list) else v for field, v in fields.items()}
        )
        return step


def written(step: tuple[Any, ...]) -> dict[str, Any]:
    """The step as JSON, without fields that have their default None."""
    kind: Any = type(step)
    return {"step": _name(kind)} | {
        field: value._asdict() if hasattr(value, "_asdict") else value
        for field, value in zip(kind._fields, step, strict=True)
        if value is not None or field not in kind._field_defaults
    }


def last(steps: Iterable[object], kind: type[Kind]) -> Kind | None:
    """The last step of a kind. One without fields is as false as None: ask `has` for it."""
    found = None
    for step in steps:
        if isinstance(step, kind):
            found = step
    return found


def has(steps: Iterable[object], kind: type[tuple[Any, ...]]) -> bool:
    """Whether there is a step of that kind. Steps are equal, as tuples are, across kinds."""
    return any(isinstance(step, kind) for step in steps)


def _name(kind: type[tuple[Any, ...]]) -> str:
    letters = (f" {letter}" if letter.isupper() else letter for letter in kind.__name__)
    return "".join(letters).lower().lstrip()
