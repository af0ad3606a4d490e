"""Processes of the agent's that move bytes: threads of one process would wait for Python's lock.

Its ssl hands over 16 KiB a call, whatever is asked for, so that one process moves about 1 GiB/s
however many threads it has. Each ends when its pipe does, which is when the agent ends.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, suppress

from grit_runtime.errors import CommandError, of_reason
from grit_runtime.host import process
from grit_runtime.host.descriptor import closing_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from grit_runtime.store.receiving import Apart, Into, Wanted

_STDERR = 2
# Measured, 32 cores: 4 processes at each end bring 2.9 GiB/s, 8 of them 4.8, 16 of them 7.5.
_CORES_A_SERVER, _MOST_SERVERS = 2, 16
_FEW_CORES = 8  # of which the threads of one process take all there is
_FEW_BYTES = 256 << 20  # in which a process would hardly have started


def servers_worth_having() -> int:
    """How many processes may serve, none of which does anything while nobody asks."""
    return min(len(os.sched_getaffinity(0)) // _CORES_A_SERVER, _MOST_SERVERS)


def are_worth_having(size_bytes: int) -> bool:
    """Whether so much comes sooner by processes of their own."""
    return len(os.sched_getaffinity(0)) >= _FEW_CORES and size_bytes >= _FEW_BYTES


@contextmanager
def serving(listening: socket.socket, root: str, directory: str, count: int) -> Iterator[None]:
    """While the block runs, *count* more processes accept what comes to the *listening* socket.

    They serve the checkpoints below *root* with the identity in *directory*.
    """
    read_fd, write_fd = os.pipe()
    asked = {"call": "serve", "root": root, "identity": directory}
    argv = _command_line(asked)
    with closing_fd(read_fd):
        pids = [
            process.spawn_apart(argv, os.environ, listening.fileno(), read_fd, _STDERR)
            for _ in range(count)
        ]
    try:
        yield
    finally:
        os.close(write_fd)
        for pid in pids:
            process.wait(pid)


@contextmanager
def receiver(source: Mapping[str, Any], into: Into) -> Iterator[Apart]:
    """A process that brings chunks into a directory, one after the other.

    *source* is what `helper` makes a source of.
    """
    asked = {
        "call": "receive",
        "directory": f"/proc/{os.getpid()}/fd/{into.fd}",
        "is_awaited": into.is_awaited,
        **source,
    }
    orders_fd, to_fd = os.pipe()
    from_fd, answers_fd = os.pipe()
    with closing_fd(orders_fd), closing_fd(answers_fd):
        argv = _command_line(asked)
        pid = process.spawn_apart(argv, os.environ, orders_fd, answers_fd, _STDERR)
    with open(to_fd, "w") as orders, open(from_fd) as answers:

        def bring(run: Sequence[Wanted]) -> Iterator[tuple[bytes, int]]:
            order = [
                [one.file.path, one.file.size_bytes, one.number, one.size_bytes] for one in run
            ]
            with suppress(BrokenPipeError):  # what it has said last tells why
                print(json.dumps(order), file=orders, flush=True)
            for _ in run:
                answer = json.loads(answers.readline() or '{"text": "it was killed"}')
                if "text" in answer:
                    kind = of_reason(answer["reason"]) if "reason" in answer else CommandError
                    raise kind(answer["text"])
                yield bytes.fromhex(answer["digest"]), answer["moved_bytes"]

        try:
            yield bring
        finally:
            with suppress(BrokenPipeError):
                orders.close()
            process.wait(pid)


def _command_line(asked: Mapping[str, Any]) -> list[str]:
    """A process that finds all modules where this one does."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from grit_runtime.agent.helper import main; "
    return [sys.executable, "-ISE", "-c", f"{code}main({json.dumps(asked)!r})"]
