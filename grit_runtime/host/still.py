"""Holding processes still, and having them make system calls, from a process of its own.

Whoever is killed between the two halves of such a call leaves its target with registers that are
not its own. So it is done by a child that no signal to us reaches; when we are gone it finishes
what it has begun, lets go, and ends.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager

from grit_runtime.errors import CommandError, GritError
from grit_runtime.host import process, ptrace
from grit_runtime.host.ptrace import Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Perform = Callable[[Sequence[Syscall]], list[int]]


@contextmanager
def held(pids: Sequence[int], token: str) -> Iterator[Perform]:
    """Hold the processes still for as long as the block lasts, as `ptrace.stopped` does.

    Yields what makes system calls in their names, as `ptrace.perform` does. The child that does
    both carries *token*. Blocks until all have stopped.
    """
    request_fd, to_child = os.pipe()
    from_child, answer_fd = os.pipe()
    child = os.posix_spawn(
        sys.executable,
        process.python(__name__, list(pids)),
        {**os.environ, process.OPERATION: token},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, request_fd, 0),
            (os.POSIX_SPAWN_DUP2, answer_fd, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,
    )
    os.close(request_fd)
    os.close(answer_fd)
    try:
        with open(to_child, "wb", buffering=0) as requests, open(from_child, "rb") as answers:

            def perform(calls: Sequence[Syscall]) -> list[int]:
                requests.write(json.dumps(calls).encode() + b"\n")
                return _answer(answers.readline())

            _answer(answers.readline())
            yield perform
    finally:
        os.waitpid(child, 0)


def main(pids: list[int]) -> None:
    """Hold *pids* still and perform calls, a line of JSON each, until there is nobody to ask."""
    try:
        with ptrace.stopped(pids):
            _write([])
            for line in sys.stdin:
                calls = [
                    Syscall(pid, number, tuple(arguments))
                    for pid, number, arguments in json.loads(line)
                ]
                _write(ptrace.perform(calls))
    except (GritError, OSError) as error:
        _write({"error": str(error)})


def _write(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _answer(line: bytes) -> list[int]:
    if not line:
        raise CommandError("the process that held others still has died; see the kernel's log")
    answer = json.loads(line)
    if isinstance(answer, dict):
        raise CommandError(answer["error"])
    results: list[int] = answer
    return results
