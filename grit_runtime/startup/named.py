"""NamedTuple for programs whose start is waited for: what typing's is, made in a third of the time.

typing looks at each annotation and loads a parser for it (Python 3.14), which is 15 ms for the
eighty classes of a restore, though nobody asks for them but the manifest's reader. The annotations
are texts here, so a module with such a class begins with ``from __future__ import annotations``.
"""

from __future__ import annotations

import sys
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple
else:
    from collections import namedtuple

    class _Maker(type):
        """What stands in a class body becomes a named tuple's."""

        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            module, fields = body.pop("__module__"), body.get("__annotations__", {})
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=module)
            for key, value in body.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """As typing's."""


__all__ = ["NamedTuple", "types"]


@cache
def types(named: type[tuple[Any, ...]]) -> dict[str, Any]:
    """The types of a class's fields, by their names."""
    known = vars(sys.modules[named.__module__])
    return {field: eval(text, known) for field, text in named.__annotations__.items()}  # noqa: S307
