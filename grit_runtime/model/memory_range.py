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


def striped(ranges: Iterable[MemoryRange], count: int, unit_bytes: int) -> list[list[MemoryRange]]:
    """*ranges*, dealt out in units in *count* turns; fewer if there are fewer units."""
    units = [
        MemoryRange(start, min(start + unit_bytes, one.end))
        for one in ranges
        for start in range(one.start, one.end, unit_bytes)
    ]
    return [merged(units[turn::count]) for turn in range(min(count, len(units)))]


def merged(ranges: Iterable[MemoryRange]) -> list[MemoryRange]:
    """The same memory in order, with what lies side by side as one."""
    whole: list[MemoryRange] = []
    for one in sorted(ranges):
        if whole and whole[-1].end == one.start:
            one = MemoryRange(whole.pop().start, one.end)  # noqa: PLW2901
        whole.append(one)
    return whole


def _without(new: MemoryRange, old: MemoryRange) -> list[MemoryRange]:
    below = MemoryRange(new.start, min(new.end, old.start))
    above = MemoryRange(max(new.start, old.end), new.end)
    return [piece for piece in (below, above) if piece.size_bytes > 0]
