"""How hard to compress, by what the store takes: measured while chunks are on their way."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from threading import Lock

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# What zstd's levels cost and save on pages of processes, until they are measured here: seconds for
# a MiB on one core, and what is left of it.
_GUESSED = {1: (0.0015, 0.40), 3: (0.003, 0.37), 9: (0.015, 0.33)}
_UNCOMPRESSED = 0
_WEIGHT = 0.2  # of what is newly measured
_MIB = 1 << 20


class _Cost(NamedTuple):
    seconds: float  # for a MiB
    left: float


class Levels:
    """Which level brings most of what is read into the store, with all cores at work."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._costs = {level: _Cost(*guess) for level, guess in _GUESSED.items()}
        self._cores = len(os.sched_getaffinity(0))
        self._written_mib = 0.0
        self._writing = 0
        self._busy_since = 0.0
        self._busy_s = 0.0

    def best(self) -> int:
        """zstd's level, or 0 not to compress."""
        with self._lock:
            link = self._written_mib / self._busy_s if self._busy_s > 0 else 0.0
            if not link:
                return 1
            rates = {
                level: min(self._cores / cost.seconds, link / cost.left)
                for level, cost in self._costs.items()
            }
        rates[_UNCOMPRESSED] = link
        return max(rates, key=lambda level: (rates[level], -level))

    def compressed(self, level: int, size_bytes: int, left_bytes: int, seconds: float) -> None:
        """Note what a level has cost."""
        new = _Cost(seconds * _MIB / size_bytes, left_bytes / size_bytes)
        with self._lock:
            old = self._costs[level]
            self._costs[level] = _Cost(
                *(o + _WEIGHT * (n - o) for o, n in zip(old, new, strict=True))
            )

    @contextmanager
    def writing(self, size_bytes: int) -> Iterator[None]:
        """Note how long the store takes; several writes at a time count once."""
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
                self._written_mib += size_bytes / _MIB
