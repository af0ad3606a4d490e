"""Who is worked on at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from grit_runtime.manager.slots import Slots


def test_those_that_wait_take_no_place_from_one_that_has_something_to_do() -> None:
    async def work() -> None:
        slots = Slots(1)
        async with slots.one(lambda: True), asyncio.timeout(5), slots.one(lambda: False):
            pass

    asyncio.run(work())


def test_one_that_finds_no_place_to_wait_goes_on_when_what_it_waits_for_has_come() -> None:
    waits = {"first": True, "second": True}

    async def work() -> None:
        slots = Slots(1)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(slots.one(lambda: waits["first"]))
            second = slots.one(lambda: waits["second"])
            asking = asyncio.ensure_future(stack.enter_async_context(second))
            await asyncio.sleep(0.1)
            assert not asking.done()
            waits["second"] = False
            await asyncio.wait_for(asking, 5)

    asyncio.run(work())


def test_no_more_than_that_are_worked_on() -> None:
    async def work() -> None:
        slots, most, now = Slots(3), 0, 0

        async def one(number: int) -> None:
            nonlocal most, now
            async with slots.one(lambda: number % 2 > 0):
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.01)
                now -= 1

        await asyncio.gather(*(one(number) for number in range(20)))
        assert most == 6

    asyncio.run(work())
