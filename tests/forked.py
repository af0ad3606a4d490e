"""Children of the tests' own process."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """The pid of one that does *work*, keeps what that returns, and ends with the block.

    However the block ends: what else it holds, a pipe say, somebody may wait for.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _kept = work()
            signal.pause()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
