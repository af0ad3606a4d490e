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

_UNCOMPRESSED = 0
_WEIGHT = 0.2  # of what is newly measured
_MIB = 1 << 20
_OTHER_S = 0.0015  # what reading, hashing and writing a MiB take of a core besides


class Cost(NamedTuple):
    """What a level costs and saves."""

    seconds: float  # for a MiB, on one core
    left: float  # of it


# What it is on pages of processes, until it is measured here.
GUESSED = {1: Cost(0.0015, 0.40), 3: Cost(0.003, 0.37), 9: Cost(0.015, 0.33)}


def best(costs: Mapping[int, Cost], *, cores: int, store_mib_per_s: float) -> int:
    """The level, or 0 not to compress, that brings most of what is read into the store.

    All cores are at work, and the store takes no more than it does.
    """
    rates = {
        level: min(cores / (cost.seconds + _OTHER_S), store_mib_per_s / cost.left)
        for level, cost in costs.items()
    }
    rates[_UNCOMPRESSED] = min(cores / _OTHER_S, store_mib_per_s)
    return max(rates, key=lambda level: (rates[level], -level))


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
        """zstd's level, or 0 not to compress; 1 until the store has taken something."""
        with self._lock:
            if not self._written_mib:
                return 1
            rate = self._written_mib / self._busy_s
            return best(self._costs, cores=self._cores, store_mib_per_s=rate)

    def compressed(self, level: int, size_bytes: int, left_bytes: int, seconds: float) -> None:
        """Note what a level has cost one core."""
        new = Cost(seconds * _MIB / size_bytes, left_bytes / size_bytes)
        with self._lock:
            old = self._costs[level]
            self._costs[level] = Cost(
                *(o + _WEIGHT * (n - o) for o, n in zip(old, new, strict=True))
            )

    @contextmanager
    def writing(self, durable_bytes: int = 0) -> Iterator[None]:
        """Note how long the store takes until so much is in it; writes at a time count once."""
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
                self._written_mib += durable_bytes / _MIB
