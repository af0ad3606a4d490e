"""Whoever stands still for so long that others take him for dead, and then goes on."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from grit_runtime.errors import UnavailableError
from grit_runtime.model import stored
from grit_runtime.store import catalog, collect, locks
from grit_runtime.store.directory import Directory
from grit_runtime.store.push import push
from grit_runtime.store.records import Unlocked
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from grit_runtime.store.directory import _File
    from grit_runtime.store.listed import Stored

LATE = pytest.raises(UnavailableError, match="stood still for")


class Slow(Directory):
    """A store whose holders of locks stand still once, when the *slow* kind of object is touched.

    Meanwhile others may come.
    """

    def __init__(self, path: Path, slow: str, *, is_collected: bool = True) -> None:
        super().__init__(str(path), make=True)
        self._path = path
        self._slow = slow
        self._is_collected = is_collected

    def stand_still(self) -> None:
        self._slow = "nothing"
        long_ago_s = time.time() - 2 * stored.LOCK_LIVES_S
        for lock in (self._path / "locks").iterdir():
            os.utime(lock, (long_ago_s, long_ago_s))
        if self._is_collected:
            collect.collect(self, Unlocked(None), collect.Kept())

    @contextmanager
    def writing(self, name: str) -> Iterator[_File]:
        if name.startswith(self._slow):
            self.stand_still()
        with super().writing(name) as file:
            yield file

    def listed(self, prefix: str) -> list[Stored]:
        found = super().listed(prefix)
        if prefix.startswith(self._slow):
            self.stand_still()
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(made.MIB)})


@pytest.mark.parametrize("is_collected", [True, False])
@pytest.mark.parametrize("slow", ["packs/", "checkpoints/"])
def test_a_push_that_stood_still_refers_to_nothing_that_may_be_gone(
    tmp_path: Path, path: Path, slow: str, *, is_collected: bool
) -> None:
    store = Slow(tmp_path / "store", "nothing", is_collected=is_collected)

    def sent(*_: int) -> None:
        if slow == "packs/":
            store.stand_still()

    if slow == "checkpoints/":
        store = Slow(tmp_path / "store", slow, is_collected=is_collected)
    with LATE:
        push(str(path), store, None, sent)
    assert catalog.entries(store) == []
    assert store.listed(stored.LOCKS) == []
    assert not push(str(path), store, None, made.ignore).was_there


def test_a_collection_that_stood_still_removes_nothing_of_a_push(
    tmp_path: Path, path: Path
) -> None:
    store = Slow(tmp_path / "store", "nothing")
    push(str(path), store, None, made.ignore)
    entry = catalog.find(store, made.ROOT, "one")
    with LATE:
        late = Slow(tmp_path / "store", "packs/", is_collected=False)
        collect.collect(late, Unlocked(None), collect.Kept(), entries=[entry])
    assert catalog.entries(store) == [entry]
    assert store.listed(stored.LOCKS) == []


def test_a_lock_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    store = Directory(str(tmp_path), make=True)
    with locks.shared(store, "push") as lock:
        lock.require()
        assert [one.name for one in store.listed(stored.LOCKS)] == [lock.name]
        store.remove(lock.name)
        assert not lock.renewed()
        assert store.listed(stored.LOCKS) == []
        with LATE:
            lock.require(60.0)
