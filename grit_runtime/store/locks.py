"""Locks in a store, which keep what is being read or referred to from being removed.

A lock is an object that its holder writes anew every minute. One that is ten minutes older than
ours is of a holder that has died; both times are the store's, so that no clock of a node matters.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import contextmanager
from threading import Event, Thread

from grit_runtime import log
from grit_runtime.errors import RoomError, StoreBusyError
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


@contextmanager
def shared(store: Backend, purpose: str) -> Iterator[None]:
    """Keep the store's objects from being removed while the block runs.

    Waits for somebody who removes objects; StoreBusyError if that takes too long.
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        with _held(store, _SHARED, purpose) as name:
            living, _ = _others(store, name)
            others = [other for other in living if _ALONE in other]
            if not others:
                yield
                return
        if time.monotonic() > deadline:
            raise StoreBusyError(_busy(store, others[0]))
        time.sleep(_LOOK_EVERY_S)


@contextmanager
def shared_if_writable(store: Backend, purpose: str) -> Iterator[None]:
    """As `shared`; without a lock where the store lets this node only read."""
    try:
        with _held(store, _SHARED, purpose):
            pass
    except OSError as error:
        if error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise
        log.warning("the store is read-only: what is read may be removed meanwhile", url=store.url)
        yield
        return
    with shared(store, purpose):
        yield


@contextmanager
def alone(store: Backend, purpose: str) -> Iterator[None]:
    """Keep everybody else out while the block runs; StoreBusyError if somebody is there."""
    with _held(store, _ALONE, purpose) as name:
        living, dead = _others(store, name)
        for other in living:
            raise StoreBusyError(_busy(store, other))
        for other in dead:
            store.remove(other)
        yield


@contextmanager
def _held(store: Backend, kind: str, purpose: str) -> Iterator[str]:
    """A lock, renewed while the block runs; its name."""
    name = f"{stored.LOCKS}{kind}-{process.new_token()}"
    text = json.dumps({"node": os.uname().nodename, "pid": os.getpid(), "purpose": purpose})
    ended = Event()

    def renew() -> None:
        while not ended.wait(_RENEW_EVERY_S):
            try:
                backend.put(store, name, text.encode())
            except (OSError, RoomError) as error:  # the next time may do
                log.warning("a lock could not be renewed", name=name, reason=error)

    try:
        backend.put(store, name, text.encode())
    except RoomError:  # what makes room needs a lock too, and an empty file takes none
        text = ""
        backend.put(store, name, b"")
    renewing = Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield name
    finally:
        ended.set()
        renewing.join()
        store.remove(name)


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
