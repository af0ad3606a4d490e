"""Simulated time: processes that wait, and slots that they take. Pure.

A process is a generator of waits; a wait is told how to go on, and has that happen when it is over.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    Resume = Callable[[], None]
    Wait = Callable[[Resume], None]
    Process = Generator[Wait, None, None]


class Kernel:
    """What is to happen, in the order of its time; what is due at once, first come first served."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Resume]] = []
        self._numbers = itertools.count()

    def at(self, moment_s: float, action: Resume) -> None:
        heapq.heappush(self._due, (moment_s, next(self._numbers), action))

    def sleep(self, seconds: float) -> Wait:
        return lambda resume: self.at(self.now_s + seconds, resume)

    def start(self, process: Process) -> None:
        """Run the process until it waits, and again when it goes on."""

        def step() -> None:
            for wait in process:
                wait(step)
                return

        step()

    def run(self, end_s: float) -> None:
        """Have all happen that is due until the end."""
        while self._due and self._due[0][0] <= end_s:
            self.now_s, _, action = heapq.heappop(self._due)
            action()
        self.now_s = end_s


class Slots:
    """So many at a time; the others wait, first come first served."""

    def __init__(self, kernel: Kernel, count: float) -> None:
        self._kernel = kernel
        self._free = count
        self._waiting: deque[Resume] = deque()

    def taken(self, resume: Resume) -> None:
        """A wait: for a slot."""
        if self._free >= 1:
            self._free -= 1
            self._kernel.at(self._kernel.now_s, resume)
        else:
            self._waiting.append(resume)

    def give_back(self) -> None:
        if self._waiting:
            self._kernel.at(self._kernel.now_s, self._waiting.popleft())
        else:
            self._free += 1


def forever(_: Resume) -> None:
    """A wait without an end."""
