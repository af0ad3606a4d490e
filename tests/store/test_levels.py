"""How hard a push compresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.store import levels
from grit_runtime.store.levels import GUESSED, Cost, Levels

MIB = 1 << 20
SECONDS = {level: cost.seconds for level, cost in GUESSED.items()}


@pytest.mark.parametrize(
    ("store_mib_per_s", "level"),
    [(5, 9), (100, 3), (300, 1), (1500, 0), (5000, 0)],
    ids=["far away", "1 Gbit/s", "a disk", "a quick disk", "memory"],
)
def test_a_slow_store_is_compressed_for_harder(store_mib_per_s: float, level: int) -> None:
    assert levels.best(GUESSED, cores=2, store_mib_per_s=store_mib_per_s) == level


def test_what_does_not_get_smaller_is_not_compressed() -> None:
    costs = {level: Cost(0.002 if level else 0.0, 1.0) for level in GUESSED}
    assert levels.best(costs, cores=2, store_mib_per_s=1) == 0


@given(slow=st.floats(0.1, 1e4), fast=st.floats(0.1, 1e4), cores=st.integers(1, 64))
def test_a_faster_store_never_asks_for_more(slow: float, fast: float, cores: int) -> None:
    slow, fast = sorted((slow, fast))
    harder = levels.best(GUESSED, cores=cores, store_mib_per_s=slow)
    now = levels.best(GUESSED, cores=cores, store_mib_per_s=fast)
    assert SECONDS[now] <= SECONDS[harder]


def test_nothing_is_known_of_a_store_that_has_taken_nothing() -> None:
    own = Levels()
    with own.writing():
        own.taken(0)  # bytes that a page cache has taken in no time
    assert own.best() == 1


def test_what_is_measured_is_gone_by() -> None:
    own = Levels()
    with own.writing():
        own.taken(1 << 50)  # no store is as fast
    assert own.best() == 0
    for _ in range(50):  # however much compressing saves
        own.packed(1, MIB, MIB // 100, 0.0005)
    assert own.best() == 0
    slow = Levels()
    with slow.writing():
        slow.taken(1)
    for _ in range(50):  # level 9 does not save more here than level 1
        slow.packed(9, MIB, MIB * 2 // 3, 0.015)
        slow.packed(3, MIB, MIB * 2 // 3, 0.003)
        slow.packed(1, MIB, MIB // 2, 0.0015)
    assert slow.best() == 1
