"""Ranges of a process's addresses."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class MemoryRange(NamedTuple):
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


def appeared(
    before: Iterable[MemoryRange], after: Iterable[MemoryRange], *, min_bytes: int
) -> list[MemoryRange]:
    """What is in *after* and was not in *before*, in pieces of at least *min_bytes*.

    A new mapping may have become one with an old one that lies beside it.
    """
    left = sorted(after)
    for old in before:
        left = [piece for new in left for piece in _without(new, old)]
    return [new for new in left if new.size_bytes >= min_bytes]


def _without(new: MemoryRange, old: MemoryRange) -> list[MemoryRange]:
    below = MemoryRange(new.start, min(new.end, old.start))
    above = MemoryRange(max(new.start, old.end), new.end)
    return [piece for piece in (below, above) if piece.size_bytes > 0]
