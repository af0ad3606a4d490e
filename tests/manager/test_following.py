from __future__ import annotations

import asyncio

from grit_runtime.manager.following import Change, Following

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    Object = dict[str, Any]


def made(name: str, version: int, namespace: str = "default") -> Object:
    return {"metadata": {"name": name, "namespace": namespace, "version": version}}


class Server:
    """Keeps objects, and tells whoever watches of their changes."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Object] = {}
        self.watches = 0
        self.reads = 0
        self._told: asyncio.Queue[Change | None] = asyncio.Queue()

    def put(self, one: Object) -> None:
        meta = one["metadata"]
        self.kept[meta["namespace"], meta["name"]] = one
        self._told.put_nowait(Change(one, is_gone=False))

    def remove(self, name: str) -> None:
        self._told.put_nowait(Change(self.kept.pop(("default", name)), is_gone=True))

    def lose_the_watch(self) -> None:
        self._told.put_nowait(None)

    async def read(self, namespace: str, name: str) -> list[Object]:
        self.reads += 1
        return [self.kept[namespace, name]] if (namespace, name) in self.kept else []

    async def watch(self) -> AsyncIterator[Change | None]:
        self.watches += 1
        yield None
        while True:
            yield await self._told.get()

    def following(self) -> Following:
        return Following(self.read, self.watch, lambda one: str(one["metadata"]["name"]))


def version(found: Object) -> int | None:
    return next((int(one["metadata"]["version"]) for one in found.values()), None)


def test_those_who_follow_share_a_watch_and_each_hears_of_its_own() -> None:
    async def follow() -> None:
        server = Server()
        following = server.following()
        for name in ("a", "b"):
            server.kept["default", name] = made(name, 1)
        a, b = (following.of("default", name) for name in ("a", "b"))
        assert [version(await anext(one)) for one in (a, b)] == [1, 1]
        server.put(made("a", 2))
        server.put(made("b", 5))
        server.put(made("a", 3, "other"))
        server.put(made("a", 4))
        assert [version(await anext(a)) for _ in range(2)] == [2, 4]
        assert version(await anext(b)) == 5
        assert (server.watches, server.reads) == (1, 2)

    asyncio.run(follow())


def test_what_is_gone_is_read_again() -> None:
    async def follow() -> None:
        server = Server()
        server.kept["default", "a"] = made("a", 1)
        one = server.following().of("default", "a")
        await anext(one)
        server.remove("a")
        assert await anext(one) == {}
        server.put(made("a", 2))
        server.remove("a")
        server.put(made("a", 3))
        assert [version(await anext(one)) for _ in range(2)] == [2, 3]

    asyncio.run(follow())


def test_what_a_lost_watch_has_missed_is_read() -> None:
    async def follow() -> None:
        server = Server()
        server.kept["default", "a"] = made("a", 1)
        one = server.following().of("default", "a")
        await anext(one)
        server.kept["default", "a"] = made("a", 2)
        server.lose_the_watch()
        assert version(await anext(one)) == 2

    asyncio.run(follow())


def test_the_watch_ends_with_the_last_who_follows_and_begins_anew_with_the_next() -> None:
    async def follow() -> None:
        server = Server()
        following = server.following()
        for _ in range(2):
            first, second = (following.of("default", name) for name in ("a", "b"))
            await anext(first)
            await anext(second)
            await first.aclose()  # type: ignore[attr-defined]
            await second.aclose()  # type: ignore[attr-defined]
        assert server.watches == 2

    asyncio.run(follow())
