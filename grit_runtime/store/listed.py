"""An object of a store, as the store lists it."""

from __future__ import annotations

from grit_runtime.startup.named import NamedTuple


class Stored(NamedTuple):
    name: str
    size_bytes: int
    written_s: float  # of the store's own clock
