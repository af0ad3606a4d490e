"""Locks in a store, which keep what is being read or referred to from being removed.

A lock is an object that its holder writes anew every minute. One that is ten minutes older than
ours is of a holder that has died; both times are the store's, so that no clock of a node matters.
A holder that was stopped for so long, or cut off from the store, finds out by the same clock.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import contextmanager
from threading import Event, Thread
from threading import Lock as Mutex

from grit_runtime import log
from grit_runtime.errors import RoomError, StoreBusyError, UnavailableError
from grit_runtime.host import process
from grit_runtime.model import stored
from grit_runtime.store import backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.store.backend import Backend

_SHARED, _ALONE = "shared", "alone"
_RENEW_EVERY_S = 60.0
_WAIT_S = 120.0
_LOOK_EVERY_S = 0.5


class Lock:
    """A lock that is held until others may have taken its holder for dead; then it is lost."""

    def __init__(self, store: Backend, kind: str, purpose: str) -> None:
        self.name = f"{stored.LOCKS}{kind}-{process.new_token()}"
        self._store = store
        self._purpose = purpose
        holder = {"node": os.uname().nodename, "pid": os.getpid(), "purpose": purpose}
        self._text = json.dumps(holder).encode()
        self._mutex = Mutex()
        self._is_lost = False
        self._held_s = 0.0
        self._write()

    def require(self, held_s: float = 0.0) -> None:
        """UnavailableError if it was lost at any time; that it was held *held_s* ago is enough."""
        is_sure = not self._is_lost and _now_s() - self._held_s < held_s
        if not is_sure and not self.renewed():
            raise UnavailableError(
                f"store {self._store.url}: {self._purpose} stood still for more than "
                f"{stored.LOCK_LIVES_S / 60:.0f} minutes, and what it works with may be removed by "
                "now; try again"
            )

    def renewed(self) -> bool:
        """Write it anew, unless it is lost: a lock that was removed is not made again."""
        with self._mutex:
            now_s = _now_s()
            before_s = None if self._is_lost else self._written_s()
            if before_s is not None:
                self._write()
                after_s = self._written_s()
                if after_s is not None and after_s - before_s < stored.LOCK_LIVES_S:
                    self._held_s = now_s
                    return True
                self._store.remove(self.name)
            self._is_lost = True
            return False

    def _write(self) -> None:
        try:
            backend.put(self._store, self.name, self._text)
        except RoomError:  # what makes room needs a lock too, and an empty file takes none
            backend.put(self._store, self.name, b"")

    def _written_s(self) -> float | None:
        locks = self._store.listed(stored.LOCKS)
        return next((lock.written_s for lock in locks if lock.name == self.name), None)


@contextmanager
def shared(store: Backend, purpose: str) -> Iterator[Lock]:
    """Keep the store's objects from being removed while the block runs.

    Waits for somebody who removes objects; StoreBusyError if that takes too long. Before what
    relies on it, and after, the block requires the lock.
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        with _held(store, _SHARED, purpose) as lock:
            living, _ = _others(store, lock.name)
            others = [other for other in living if _ALONE in other]
            if not others:
                yield lock
                return
        if time.monotonic() > deadline:
            raise StoreBusyError(_busy(store, others[0]))
        time.sleep(_LOOK_EVERY_S)


@contextmanager
def shared_if_writable(store: Backend, purpose: str) -> Iterator[bool]:
    """As `shared`; false, and no lock, where the store lets this node only read."""
    try:
        with _held(store, _SHARED, purpose):
            pass
    except OSError as error:
        if error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise
        log.warning("the store is read-only: what is read may be removed meanwhile", url=store.url)
        yield False
        return
    with shared(store, purpose):
        yield True


@contextmanager
def alone(store: Backend, purpose: str) -> Iterator[Lock]:
    """Keep everybody else out while the block runs; StoreBusyError if somebody is there."""
    with _held(store, _ALONE, purpose) as lock:
        living, dead = _others(store, lock.name)
        for other in living:
            raise StoreBusyError(_busy(store, other))
        for other in dead:
            store.remove(other)
        yield lock


@contextmanager
def _held(store: Backend, kind: str, purpose: str) -> Iterator[Lock]:
    """A lock, renewed while the block runs."""
    ended = Event()

    def renew() -> None:
        while not ended.wait(_RENEW_EVERY_S):
            try:
                if not lock.renewed():
                    log.warning("a lock is lost: it could not be renewed in time", name=lock.name)
                    return
            except (OSError, RoomError) as error:  # the next time may do
                log.warning("a lock could not be renewed", name=lock.name, reason=error)

    lock = Lock(store, kind, purpose)
    renewing = Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield lock
    finally:
        ended.set()
        renewing.join()
        store.remove(lock.name)


def _now_s() -> float:
    """A clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _others(store: Backend, own: str) -> tuple[list[str], list[str]]:
    """The names of the locks, besides our *own*, whose holders live, and of those that do not."""
    locks = store.listed(stored.LOCKS)
    now_s = next(lock.written_s for lock in locks if lock.name == own)
    living: list[str] = []
    dead: list[str] = []
    for lock in locks:
        if lock.name != own:
            (living if now_s - lock.written_s < stored.LOCK_LIVES_S else dead).append(lock.name)
    return living, dead


def _busy(store: Backend, name: str) -> str:
    try:
        holder = json.loads(store.read(name, size_bytes=4096))
        by = f"{holder['purpose']} on node {holder['node']}, process {holder['pid']}"
    except Exception:  # noqa: BLE001  it is only for the message
        by = name
    return f"store {store.url} is in use: {by}; try again when that has ended"
