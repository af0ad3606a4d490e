"""How many objects of a kind are worked on at once; what only waits takes no place from others."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_LOOK_EVERY_S = 1.0


class Slots:
    """*many* for those with something to do, and as many for those that wait for somebody else."""

    def __init__(self, many: int) -> None:
        self._busy = asyncio.Semaphore(many)
        self._waiting = asyncio.Semaphore(many)

    @asynccontextmanager
    async def one(self, is_waiting: Callable[[], bool]) -> AsyncIterator[None]:
        """A place, once there is one. Who waits for a place among those that wait, and has
        something to do by then, is done with waiting."""
        slots = await self._taken(is_waiting)
        try:
            yield
        finally:
            slots.release()

    async def _taken(self, is_waiting: Callable[[], bool]) -> asyncio.Semaphore:
        while is_waiting():
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._waiting.acquire()
            except TimeoutError:
                continue
            return self._waiting
        await self._busy.acquire()
        return self._busy
