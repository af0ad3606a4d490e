"""A workload of several processes: the first one only starts the others and waits for them."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def run(count: int, work: Callable[[int], None]) -> None:
    """Call *work* with each rank, in a process of its own where there are several.

    A signal to the first process goes on to all. Ends as soon as one of them does, with 1.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if count == 1:
        work(0)
        return
    children = [_start(rank, work) for rank in range(count)]
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: _pass_on(number, children))
    os.wait()
    _pass_on(signal.SIGTERM, children)
    sys.exit(1)


def _start(rank: int, work: Callable[[int], None]) -> int:
    pid = os.fork()
    if pid == 0:
        work(rank)
        os._exit(0)
    return pid


def _pass_on(number: int, children: list[int]) -> None:
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
