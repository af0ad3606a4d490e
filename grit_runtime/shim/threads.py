"""Doing work that may block off the event loop: on slow disks, lost file systems, busy mounts.

The loop itself accesses only what is in memory: the bundle and /run, which are tmpfs, /proc, pipes,
sockets, and terminals that do not block. It also starts programs: Python does that with its lock
held (Modules/posixmodule.c py_posix_spawn), so a thread would not help.
"""

from __future__ import annotations

import _thread
import asyncio
from contextlib import suppress
from typing import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """The result of *work* with *arguments*, called in a thread of its own.

    The thread ends with its work: threads that hang do not block others, as in a pool, and an idle
    shim has none. It does not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]
        else:
            done.set_exception(error)

    def run() -> None:
        result, failed = None, None
        try:
            result = work(*arguments)
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            failed = error
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, result, failed)

    _thread.start_new_thread(run, ())  # a Thread of threading has twice the memory, to be joined
    return await done
