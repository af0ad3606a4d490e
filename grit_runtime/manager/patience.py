"""How long things may take, and when to try again."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime

from grit_runtime import log
from grit_runtime.errors import (
    BusyError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    GritError,
    InvalidArgumentError,
    PermissionDeniedError,
    StoreBusyError,
    UnavailableError,
    one_line,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import NoReturn, TypeVar

    from grit_runtime.manager.cluster import Object

    Answer = TypeVar("Answer")
    Key = TypeVar("Key")
    One = TypeVar("One")

_PASSING = (UnavailableError, DeadlineExceededError, StoreBusyError)
_MENDED = (ConflictError, InvalidArgumentError, PermissionDeniedError)
_END_S = 10.0  # for what is told to end
_BUSY_TRIES, _BUSY_PAUSE_S = 30, 2.0
_PAUSES_S = (0.5, 1, 2, 5, 10, 20, 30, 30, 30)


def passes(error: GritError) -> bool:
    """Whether the same may go well a little later."""
    return isinstance(error, _PASSING)


def lasts(error: GritError) -> bool:
    """Whether whoever asks again is refused again."""
    return not passes(error) and not isinstance(error, (BusyError, ConflictError))


async def repeated(attempt: Callable[[], Awaitable[Answer]]) -> Answer:
    """What *attempt* returns; tried again after what passes, with longer and longer pauses."""
    for pause_s in _PAUSES_S:
        try:
            return await attempt()
        except GritError as error:
            if not passes(error):
                raise
            log.info("tried again later", pause_s=pause_s, reason=one_line(error))
            await asyncio.sleep(pause_s)
    return await attempt()


async def unending(
    attempt: Callable[[], Awaitable[Answer]], tell: Callable[[GritError], Awaitable[None]]
) -> Answer:
    """As `repeated`, but without an end; *tell* hears of each failure that may pass."""
    for pause_s in itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1])):
        try:
            return await attempt()
        except GritError as error:
            if not passes(error):
                raise
            await tell(error)
            await asyncio.sleep(pause_s)
    raise AssertionError  # there is always another pause


async def until_mended(
    attempt: Callable[[], Awaitable[Answer]], tell: Callable[[GritError], Awaitable[None]]
) -> Answer:
    """As `unending`; what the API server says until a role, a quota or somebody's webhook is
    mended passes, too."""

    async def persistent() -> Answer:
        try:
            return await attempt()
        except _MENDED as error:
            raise UnavailableError(one_line(error)) from None

    return await unending(persistent, tell)


async def while_busy(attempt: Callable[[], Awaitable[Answer]]) -> Answer:
    """What *attempt* returns; tried again while something needs what is to go: a pod of which
    kubelet has yet to hear, a job that ends, or who collects what a store needs no more."""
    for _ in range(_BUSY_TRIES):
        try:
            return await attempt()
        except FailedPreconditionError as error:
            log.info("tried again later", pause_s=_BUSY_PAUSE_S, reason=one_line(error))
            await asyncio.sleep(_BUSY_PAUSE_S)
    return await attempt()


def left_s(timeout_s: int | None, body: Object) -> float | None:
    """What is left of a time that began when the object was made; None for no end."""
    if timeout_s is None:
        return None
    begun = datetime.fromisoformat(body["metadata"]["creationTimestamp"])
    return max(0.0, timeout_s - (datetime.now(UTC) - begun).total_seconds())


async def for_each(
    watched: AsyncIterator[dict[Key, One]],
    is_meant: Callable[[One], bool],
    work: Callable[[One], Awaitable[None]],
) -> None:
    """A task of *work* for each object that is meant, until it is not; for as long as watched."""
    tasks: dict[Key, asyncio.Future[None]] = {}
    try:
        async for found in watched:
            meant = {key for key, one in found.items() if is_meant(one)}
            for key in meant - tasks.keys():
                tasks[key] = asyncio.ensure_future(work(found[key]))
            for key in tasks.keys() - meant:
                tasks.pop(key).cancel()
    finally:
        for task in tasks.values():
            task.cancel()


async def unless(
    work: Awaitable[None], guard: Awaitable[None], limit_s: float | None = None
) -> bool:
    """Do *work*, unless *guard* fails before: its error then. Whether it was done in time."""
    doing, guarding = asyncio.ensure_future(work), asyncio.ensure_future(guard)
    try:
        await asyncio.wait((doing, guarding), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            await doing
            return True
        if guarding.done():
            await guarding
        return False
    finally:
        for task in (doing, guarding):
            task.cancel()
        await asyncio.gather(doing, guarding, return_exceptions=True)


async def together(*work: Awaitable[object]) -> None:
    """All of *work* until the first of it has ended or failed."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_END_S)


async def forever() -> NoReturn:
    """Wait until somebody ends the task."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError
