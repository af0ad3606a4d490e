"""Objects that are waited for, each by somebody else, over one watch of their kind.

A watch has a connection for itself, so that one for each who waits would be thousands where many
pods move at once.
"""

from __future__ import annotations

import asyncio

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Any

    Object = dict[str, Any]
    Read = Callable[[str, str], Awaitable[list[Object]]]
    Watch = Callable[[], AsyncIterator["Change | None"]]


class Change(NamedTuple):
    one: Object
    is_gone: bool


class Following:
    """All who wait for objects of one kind, each for those of a subject.

    *read* reads what there is of a subject, by its namespace and value. *watch* yields what has
    changed, and None whenever anything may have: at its beginning, too.
    """

    def __init__(self, read: Read, watch: Watch, subject: Callable[[Object], str]) -> None:
        self._read = read
        self._watch = watch
        self._subject = subject
        self._waiting: dict[tuple[str, str], set[asyncio.Queue[Object | None]]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._has_begun = False

    async def of(self, namespace: str, value: str) -> AsyncIterator[dict[str, Object]]:
        """The objects of a subject, by name: now, and whenever any of them has changed."""
        key = namespace, value
        changes: asyncio.Queue[Object | None] = asyncio.Queue()
        self._waiting.setdefault(key, set()).add(changes)
        if self._watching is None:
            self._watching = asyncio.create_task(self._tell())
        elif self._has_begun:
            changes.put_nowait(None)
        found: dict[str, Object] = {}
        try:
            while True:
                one = await changes.get()
                if one is None:
                    found = {each["metadata"]["name"]: each for each in await self._read(*key)}
                else:
                    found = {**found, one["metadata"]["name"]: one}
                yield found
        finally:
            self._leave(key, changes)

    def _leave(self, key: tuple[str, str], changes: asyncio.Queue[Object | None]) -> None:
        self._waiting[key].remove(changes)
        if not self._waiting[key]:
            del self._waiting[key]
        if not self._waiting and self._watching:
            self._watching.cancel()
            self._watching, self._has_begun = None, False

    async def _tell(self) -> None:
        """Tell those whose objects have changed. What is gone, and what may be, they read."""
        async for change in self._watch():
            self._has_begun = True
            if change is None:
                meant = [each for several in self._waiting.values() for each in several]
                told = None
            else:
                key = change.one["metadata"]["namespace"], self._subject(change.one)
                meant = list(self._waiting.get(key, ()))
                told = None if change.is_gone else change.one
            for changes in meant:
                changes.put_nowait(told)
