"""Which packs of a store can be referred to: those that are there, long enough and not damaged.

Whoever reads a chunk that is damaged says so of its pack, by an object. No push refers to that pack
from then on, so what is pushed again is sent again. The object goes with the pack.
"""

from __future__ import annotations

from grit_runtime.store import backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from grit_runtime.model.stored import Index
    from grit_runtime.store.backend import Backend

_PREFIX = "damaged/"
_PACKS = "packs/"


def note(store: Backend, packs: Iterable[str]) -> None:
    """Say that these *packs* are damaged."""
    for pack in packs:
        backend.put(store, _PREFIX + pack.removeprefix(_PACKS), b"")


def notes(store: Backend) -> dict[str, str]:
    """The names of such objects, by the names of the packs that they are of."""
    found = [one.name for one in store.listed(_PREFIX)]
    return {_PACKS + name.removeprefix(_PREFIX): name for name in found}


def undamaged(store: Backend) -> dict[str, int]:
    """The sizes of the packs that nobody has found damaged, by their names."""
    damaged = notes(store)
    return {pack.name: pack.size_bytes for pack in store.listed(_PACKS) if pack.name not in damaged}


def usable(index: Index, undamaged: Mapping[str, int]) -> set[int]:
    """The numbers of the *index*'s packs that have all that it refers to."""
    ends = [0] * len(index.packs)
    for file in index.files:
        for chunk in file.chunks:
            if chunk.pack >= 0:
                ends[chunk.pack] = max(ends[chunk.pack], chunk.offset + chunk.record_bytes)
    return {
        number
        for number, (pack, end) in enumerate(zip(index.packs, ends, strict=True))
        if undamaged.get(pack.name, -1) >= end
    }
