"""The node's new records, as they are made: what the agent's metrics and traces are made of."""

from __future__ import annotations

import os
from contextlib import contextmanager
from threading import Thread

from grit_runtime.host import records
from grit_runtime.host.changes import Changes
from grit_runtime.host.descriptor import closing_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.model.outcomes import Outcome

_LONGEST_WAIT_S = 3600.0


@contextmanager
def followed(told: Callable[[Outcome], None]) -> Iterator[None]:
    """While the block runs, *told* is called with each new record, once, by one thread."""
    os.makedirs(records.DIR, mode=0o700, exist_ok=True)
    ended_fd, end_fd = os.pipe2(os.O_CLOEXEC)
    with closing_fd(ended_fd), Changes() as changes:
        changes.watch(records.DIR)
        unread = _Unread()
        unread.take()

        def follow() -> None:
            has_ended = False
            while not has_ended:
                has_ended = bool(changes.wait(_LONGEST_WAIT_S, [ended_fd]))
                for one in unread.take():
                    told(one)

        thread = Thread(target=follow, name="records", daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.close(end_fd)
            thread.join()


class _Unread:
    """What is in the records and was not taken yet."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[int, tuple[Outcome, ...]]] = {}

    def take(self) -> list[Outcome]:
        """The records since the last call, of each pod oldest first."""
        found: list[Outcome] = []
        read = {}
        for uid, time_ns in records.written():
            before_ns, newest = self._read.get(uid, (0, ()))
            if time_ns != before_ns:
                now = records.readable(uid)
                found += _after(newest, now)
                newest = now[-1:]
            read[uid] = time_ns, newest
        self._read = read
        return found


def _after(newest: tuple[Outcome, ...], now: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
    for at in range(len(now), 0, -1):
        if now[at - 1 : at] == newest:
            return now[at:]
    return now
