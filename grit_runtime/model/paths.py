"""Paths in a container. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container


def nearest_mount(path: str, places: Container[str]) -> str:
    """The longest proper prefix of *path* among *places*, or the root."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if path in places:
            break
    return path
