"""How hard to compress, by what the store takes: measured while chunks are on their way."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from threading import Lock

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FIRST = 1  # until the store has taken something
_WEIGHT = 0.2  # of what is newly measured
_MIB = 1 << 20
_OTHER_S = 0.0006  # what reading, hashing and writing a MiB take of a core besides


class Cost(NamedTuple):
    """What a level costs and saves."""

    seconds: float  # for a MiB, on one core
    left: float  # of it


# What it is on pages of processes, until it is measured here. Level 0 only leaves out zeros.
GUESSED = {
    0: Cost(0.0001, 0.6),
    1: Cost(0.0015, 0.40),
    3: Cost(0.003, 0.37),
    9: Cost(0.015, 0.33),
}


def best(costs: Mapping[int, Cost], *, cores: int, store_mib_per_s: float) -> int:
    """The level that brings most of what is read into the store.

    All cores are at work, and the store takes no more than it does.
    """
    rates = {
        level: min(cores / (cost.seconds + _OTHER_S), store_mib_per_s / cost.left)
        for level, cost in costs.items()
    }
    return max(rates, key=lambda level: (rates[level], -costs[level].seconds))


class Levels:
    """The best level by what a push has met so far."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._costs = dict(GUESSED)
        self._cores = len(os.sched_getaffinity(0))
        self._written_mib = 0.0
        self._writing = 0
        self._busy_since = 0.0
        self._busy_s = 0.0

    def best(self) -> int:
        """zstd's level, or 0 only to leave out zeros."""
        with self._lock:
            if not self._written_mib:
                return _FIRST
            rate = self._written_mib / self._busy_s
            return best(self._costs, cores=self._cores, store_mib_per_s=rate)

    def packed(self, level: int, size_bytes: int, left_bytes: int, seconds: float) -> None:
        """Note what a level has cost one core."""
        new = Cost(seconds * _MIB / size_bytes, left_bytes / size_bytes)
        with self._lock:
            old = self._costs[level]
            self._costs[level] = Cost(
                *(o + _WEIGHT * (n - o) for o, n in zip(old, new, strict=True))
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Note how long the store is at work; writes at a time count once."""
        with self._lock:
            if self._writing == 0:
                self._busy_since = time.monotonic()
            self._writing += 1
        try:
            yield
        finally:
            with self._lock:
                now = time.monotonic()
                self._busy_s += now - self._busy_since
                self._busy_since = now
                self._writing -= 1

    def taken(self, size_bytes: int) -> None:
        """Note what is in the store, and in no memory on the way there."""
        with self._lock:
            self._written_mib += size_bytes / _MIB
