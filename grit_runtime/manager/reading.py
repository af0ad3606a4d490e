"""Objects of which some may not be as they should: by another version, or by hand."""

from __future__ import annotations

from grit_runtime import log
from grit_runtime.errors import InvalidArgumentError, one_line
from grit_runtime.manager import api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from grit_runtime.manager.api import Record
    from grit_runtime.manager.cluster import Object


def readable(
    kind: type[Record], bodies: Iterable[Object], warnings: list[str] | None = None
) -> list[Record]:
    """The objects of *bodies* that can be read; the others stop nothing, and are logged, with a
    line for each among the *warnings*."""
    found = []
    for body in bodies:
        try:
            found.append(api.read(kind, body))
        except InvalidArgumentError as error:
            log.warning("an object is passed over", reason=one_line(error))
            if warnings is not None:
                warnings.append(f"passed over: {one_line(error)}")
    return found
