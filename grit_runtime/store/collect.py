"""Removing checkpoints from a store, and packs that no index refers to.

An index goes first and packs go later, so whoever is killed in between leaves nothing that is
half there; the next collection finishes it. Nobody reads or writes meanwhile, by the store's lock.
"""

from __future__ import annotations

from grit_runtime.errors import GritError, NotFoundError
from grit_runtime.model import stored
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import catalog, damage, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from grit_runtime.store.backend import Backend
    from grit_runtime.store.catalog import Entry
    from grit_runtime.store.listed import Stored
    from grit_runtime.store.records import Unlocked

_SURE_FOR_S = 5.0  # that nobody else works in the store, once that was seen


class Kept(NamedTuple):
    """Which checkpoints of each pod stay: so many of the newest, and none that is older."""

    newest: int | None = None
    age_s: float | None = None


class Garbage(NamedTuple):
    """What is to go, or has gone."""

    entries: tuple[Entry, ...]
    packs: tuple[Stored, ...]

    @property
    def size_bytes(self) -> int:
        return sum(pack.size_bytes for pack in self.packs)


def collect(
    store: Backend,
    unlocked: Unlocked,
    kept: Kept,
    *,
    entries: Iterable[Entry] = (),
    dry_run: bool = False,
) -> Garbage:
    """Remove what is not *kept*, the named *entries*, and every pack that then nothing refers to.

    StoreBusyError if somebody reads or writes; WrongKeyError if an index that stays cannot be read,
    since what it refers to is not known then; UnavailableError if it stood still for so long that
    others may work here.
    """
    with locks.alone(store, "collection") as lock:
        everything = catalog.entries(store)
        gone = {entry.object_name for entry in (*entries, *_expired(store, everything, kept))}
        stay = [entry for entry in everything if entry.object_name not in gone]
        needed = {
            pack.name for entry in stay for pack in catalog.read(store, entry, unlocked).packs
        }
        packs = tuple(pack for pack in store.listed("packs/") if pack.name not in needed)
        garbage = Garbage(tuple(entry for entry in everything if entry.object_name in gone), packs)
        if not dry_run:
            notes = [note for pack, note in damage.notes(store).items() if pack not in needed]
            for name in (*gone, *(pack.name for pack in packs), *notes):
                lock.require(_SURE_FOR_S)
                store.remove(name)
            lock.require(_SURE_FOR_S)
            store.remove_unfinished()
    return garbage


def _expired(store: Backend, entries: list[Entry], kept: Kept) -> list[Entry]:
    """Those, of *entries* from the newest to the oldest, that are not to be kept."""
    if kept == Kept():
        return []
    by_pod: dict[tuple[str, str], list[Entry]] = {}
    now_s = max((lock.written_s for lock in store.listed(stored.LOCKS)), default=0.0)
    for entry in entries:
        try:
            pod = catalog.read_header(store, entry).pod
        except (GritError, NotFoundError):
            pod = entry.name
        by_pod.setdefault((entry.namespace, pod), []).append(entry)
    return [
        entry
        for own in by_pod.values()
        for number, entry in enumerate(own)
        if (kept.newest is not None and number >= kept.newest)
        or (kept.age_s is not None and now_s - entry.written_s > kept.age_s)
    ]
