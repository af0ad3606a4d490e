"""Sharing work between forks of this process, because threads would wait for Python's lock."""

from __future__ import annotations

import os
import select

from grit_runtime.errors import CommandError, GritError
from grit_runtime.host import linux, process
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO, TypeVar

    T = TypeVar("T")

_MAX_COPIES = 4  # more of them wait for each other, at directories' locks and at shared state


class _Copy(NamedTuple):
    number: int
    pid: int
    result: BinaryIO  # what it returned, when it has


def worth_making() -> int:
    """How many copies can work at the same time."""
    return min(len(os.sched_getaffinity(0)), _MAX_COPIES)


def share(work: Callable[[int], T], copies: int) -> list[T]:
    """Call *work* with each number below *copies*, each in a fork of this process; the results.

    For a process of one thread. A fork shares the descriptors and their offsets, and dies with this
    process. Blocks until all have ended: the first GritError or OSError is raised here and ends the
    others; CommandError means that a fork was killed.
    """
    results: dict[int, T] = {}
    running: dict[int, _Copy] = {}  # by the descriptor of its result
    poll = select.poll()
    try:
        for number in range(copies):
            copy = _start(work, number)
            running[copy.result.fileno()] = copy
            poll.register(copy.result)
        while running:
            for result_fd, _ in poll.poll():
                copy = running[result_fd]
                results[copy.number] = _result(copy.result)
                poll.unregister(result_fd)
                process.wait(running.pop(result_fd).pid)
    finally:
        for copy in running.values():
            process.kill(copy.pid)
            copy.result.close()
    return [results[number] for number in range(copies)]


def _start(work: Callable[[int], T], number: int) -> _Copy:
    import pickle  # small layers need none

    parent = os.getpid()
    result_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.die_with_parent(parent)
            with open(write_fd, "wb") as out:
                pickle.dump(_outcome(work, number), out)
        finally:
            os._exit(0)
    os.close(write_fd)
    return _Copy(number, pid, open(result_fd, "rb"))


def _outcome(work: Callable[[int], T], number: int) -> T | GritError | OSError:
    try:
        return work(number)
    except (GritError, OSError) as error:
        return error


def _result(file: BinaryIO) -> Any:
    import pickle  # small layers need none

    with file:
        pickled = file.read()
    if not pickled:
        raise CommandError("a copy of this process that shared its work died; see the kernel's log")
    outcome = pickle.loads(pickled)  # noqa: S301  a copy of ourselves wrote it
    if isinstance(outcome, GritError | OSError):
        raise outcome
    return outcome
