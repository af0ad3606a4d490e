"""What is new among the mappings of a process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model import memory_range
from grit_runtime.model.memory_range import MemoryRange, appeared

PLACES = st.lists(st.integers(0, 60), unique=True, max_size=12).map(sorted)
RANGES = PLACES.map(
    lambda places: [MemoryRange(*pair) for pair in zip(places[::2], places[1::2], strict=False)]
)


def addresses(ranges: list[MemoryRange]) -> set[int]:
    return {address for one in ranges for address in range(one.start, one.end)}


@given(before=RANGES, after=RANGES)
def test_what_appeared_is_what_was_not_there_before(
    before: list[MemoryRange], after: list[MemoryRange]
) -> None:
    new = appeared(before, after, min_bytes=1)
    assert addresses(new) == addresses(after) - addresses(before)
    assert sum(one.size_bytes for one in new) == len(addresses(new))


def test_a_mapping_that_grew_together_with_an_old_one_is_new_only_where_it_is_new() -> None:
    before = [MemoryRange(100, 200)]
    assert appeared(before, [MemoryRange(40, 260)], min_bytes=1) == [
        MemoryRange(40, 100),
        MemoryRange(200, 260),
    ]


def test_small_pieces_are_left() -> None:
    assert appeared([], [MemoryRange(0, 9), MemoryRange(20, 30)], min_bytes=10) == [
        MemoryRange(20, 30)
    ]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=5),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_stripes_are_the_whole_memory_once(
    sizes: list[tuple[int, int]], count: int, unit: int
) -> None:
    ranges, end = [], 0
    for gap, size in sizes:
        ranges.append(MemoryRange(end + gap + 1, end + gap + 1 + size))
        end = ranges[-1].end
    stripes = memory_range.striped(ranges, count, unit)
    assert memory_range.merged(piece for own in stripes for piece in own) == ranges
    units = sum(-(-one.size_bytes // unit) for one in ranges)
    assert len(stripes) == min(count, units)
    assert all(stripes)
