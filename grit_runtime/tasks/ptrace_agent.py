"""Stopping processes, and making system calls in their name, from a separate process.

A tracer that is killed during such a call leaves its target with registers that are not its own. So
a child does it that no signal to this process reaches; when this process is gone, the child
finishes what it has begun, releases the processes, and ends.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, contextmanager

from grit_runtime.errors import CommandError, GritError
from grit_runtime.host import process
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.tasks import ptrace
from grit_runtime.tasks.ptrace import Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO, TextIO

    Perform = Callable[[Sequence[Syscall]], list[int]]


class Holder:
    """The child that stops processes, and takes requests."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers
        self._answer()

    def perform(self, calls: Sequence[Syscall]) -> list[int]:
        """As `ptrace.perform`."""
        return self._ask({"perform": calls}) if calls else []

    def go_on(self, pids: Sequence[int]) -> None:
        """As `ptrace.go_on`."""
        self._ask({"go_on": pids})

    def _ask(self, request: object) -> list[int]:
        self._requests.write(json.dumps(request).encode() + b"\n")
        return self._answer()

    def _answer(self) -> list[int]:
        line = self._answers.readline()
        if not line:
            raise CommandError("the process that held others still has died; see the kernel's log")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise CommandError(answer["error"])
        results: list[int] = answer
        return results


@contextmanager
def held(pids: Sequence[int], token: str) -> Iterator[Holder]:
    """Stop the processes for as long as the block lasts, as `ptrace.stopped` does.

    The child carries *token*. Blocks until all have stopped.
    """

    def start(request_fd: int, answer_fd: int) -> int:
        environment = {**os.environ, process.OPERATION: token}
        argv = process.python(__name__, list(pids))
        return process.spawn_apart(argv, environment, request_fd, answer_fd)

    with _held_by(start) as holder:
        yield holder


@contextmanager
def held_in_stop(pids: Sequence[int]) -> Iterator[Holder]:
    """Hold processes that SIGSTOP has stopped, as `ptrace.stopped_by_signal` does.

    Only for a process of one thread: the child is a fork of it, which costs less than a new one.
    """

    def start(request_fd: int, answer_fd: int) -> int:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                os.dup2(request_fd, 0)
                os.dup2(answer_fd, 1)
                os.closerange(2, os.sysconf("SC_OPEN_MAX"))
                with open(0) as requests, open(1, "w") as answers:
                    _serve(requests, answers, ptrace.stopped_by_signal(pids))
            finally:
                os._exit(0)
        return child

    with _held_by(start) as holder:
        yield holder


@contextmanager
def _held_by(start: Callable[[int, int], int]) -> Iterator[Holder]:
    request_fd, to_child = os.pipe()
    from_child, answer_fd = os.pipe()
    with closing_fd(request_fd), closing_fd(answer_fd):
        child = start(request_fd, answer_fd)
    try:
        with open(to_child, "wb", buffering=0) as requests, open(from_child, "rb") as answers:
            yield Holder(requests, answers)
    finally:
        os.waitpid(child, 0)


def main(pids: list[int]) -> None:
    """Hold *pids* stopped until standard input ends."""
    _serve(sys.stdin, sys.stdout, ptrace.stopped(pids))


def _serve(requests: TextIO, answers: TextIO, held_still: AbstractContextManager[None]) -> None:
    """Answer requests, a line of JSON each, while the processes are stopped."""

    def write(answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        with held_still:
            write([])
            for line in requests:
                request = json.loads(line)
                if "go_on" in request:
                    ptrace.go_on(request["go_on"])
                    write([])
                else:
                    calls = [Syscall(pid, n, tuple(rest)) for pid, n, rest in request["perform"]]
                    write(ptrace.perform(calls))
    except (GritError, OSError) as error:
        write({"error": str(error)})
