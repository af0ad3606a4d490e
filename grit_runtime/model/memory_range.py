"""Address ranges of a process, and the files with their content."""

from __future__ import annotations

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self


class MemoryRange(NamedTuple):
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


class MemoryFile(NamedTuple):
    """Memory of a process that is, or is to be, in a file: its ranges, one after the other."""

    pid: int
    path: str
    ranges: tuple[MemoryRange, ...]
    digest: str = ""  # of the file, where it is known

    @property
    def size_bytes(self) -> int:
        return sum(memory.size_bytes for memory in self.ranges)

    @classmethod
    def from_json(cls, pid: int, path: str, ranges: list[list[int]], *rest: str) -> Self:
        """What a journal gives back of one."""
        return cls(pid, path, tuple(MemoryRange(*pair) for pair in ranges), *rest)


def appeared(
    before: Iterable[MemoryRange], after: Iterable[MemoryRange], *, min_bytes: int
) -> list[MemoryRange]:
    """Ranges in *after* that were not in *before*, in pieces of at least *min_bytes*.

    The kernel may have merged a new mapping with an old one beside it.
    """
    left = sorted(after)
    for old in before:
        left = [piece for new in left for piece in _without(new, old)]
    return [new for new in left if new.size_bytes >= min_bytes]


def _without(new: MemoryRange, old: MemoryRange) -> list[MemoryRange]:
    below = MemoryRange(new.start, min(new.end, old.start))
    above = MemoryRange(max(new.start, old.end), new.end)
    return [piece for piece in (below, above) if piece.size_bytes > 0]
