"""The GPU driver, asked through workers that can be killed; and what /proc says of CUDA processes.

Never loads a driver library itself.
"""

from __future__ import annotations

import json
import os
import re
import select
import time
from contextlib import suppress
from typing import Any, NamedTuple

from grit_runtime import config
from grit_runtime.errors import CommandError, FailedPreconditionError
from grit_runtime.host import cuda, process
from grit_runtime.host.cuda import Answer, Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Answers that no driver gives: the worker was killed at its deadline, or died.
OVERDUE = Answer(-1)
DIED = Answer(-2)

# Where drivers are installed besides the linker's own path: a driver container's root (GPU
# operator), and the directories that container hosts use.
_ROOTS = ("", "/run/nvidia/driver")
_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/home/kubernetes/bin/nvidia/lib64",
)
_QUERY_DEADLINE_S = 20.0
_NODE = re.compile(r"/dev/nvidia(?:\d+|ctl|-uvm|-uvm-tools|-caps/.*)")


class Card(NamedTuple):
    """A GPU as the driver describes it."""

    uuid: str
    model: str
    minor: int
    total_bytes: int
    free_bytes: int
    mig: bool
    used_bytes: dict[int, int]  # by pid


class CudaProcess(NamedTuple):
    """A live CUDA process, by its pid on this node."""

    pid: int
    state: int
    used_bytes: dict[str, int]  # by the card's UUID

    @property
    def size_bytes(self) -> int:
        return sum(self.used_bytes.values())


class Driver:
    """The driver's libraries, loaded in workers: processes of their own, which can be killed.

    A worker is loaded once and serves one call after another, until `close` or our own end. *token*
    is the operation's.
    """

    def __init__(self, libcuda: str, libnvidia_ml: str, token: str) -> None:
        self._libcuda = libcuda
        self._libnvidia_ml = libnvidia_ml
        self._token = token
        self._idle: list[_Worker] = []
        self._nvml: list[_Worker] = []

    def warm(self, count: int) -> None:
        """Have workers for *count* calls at a time, and for NVML, load while we do other things."""
        self._idle += [self._start(self._libcuda) for _ in range(count - len(self._idle))]
        if not self._nvml:
            self._nvml.append(self._start(self._libnvidia_ml))

    def call(self, batches: Sequence[Sequence[Call]], *, deadline_s: float) -> list[list[Answer]]:
        """Make the calls of each batch in their order, and all batches at the same time.

        Blocks until all have answered. A worker that has not by the deadline is killed, and its
        calls are all OVERDUE; those of one that died are DIED.
        """
        workers = [self._idle.pop() if self._idle else self._start(self._libcuda) for _ in batches]
        for worker, batch in zip(workers, batches, strict=True):
            worker.send(batch)
        end = time.monotonic() + deadline_s
        answers = []
        for worker, batch in zip(workers, batches, strict=True):
            answer = worker.receive(max(0.0, end - time.monotonic()))
            if isinstance(answer, Answer):
                answers.append([answer] * len(batch))
            else:
                self._idle.append(worker)
                answers.append([Answer(*pair) for pair in answer])
        return answers

    def facts(self) -> Any:
        """nvml.facts, as they are now; CommandError if the driver does not say."""
        worker = self._nvml.pop() if self._nvml else self._start(self._libnvidia_ml)
        worker.send([])
        answer = worker.receive(_QUERY_DEADLINE_S)
        _require(answer)
        self._nvml.append(worker)
        return answer

    def close(self) -> None:
        """End the workers."""
        for worker in (*self._idle, *self._nvml):
            worker.end()
        self._idle, self._nvml = [], []

    def _start(self, library: str) -> _Worker:
        return _Worker(library, self._token)


def find_driver(token: str) -> Driver | None:
    """The driver's libraries; None on a node without a driver.

    A configured driver_dir is the only place looked at.
    """
    driver_dir = config.load().driver_dir
    directories = [driver_dir] if driver_dir else [r + d for r in _ROOTS for d in _DIRECTORIES]
    for directory in directories:
        libcuda, libnvidia_ml = f"{directory}/libcuda.so.1", f"{directory}/libnvidia-ml.so.1"
        if os.path.exists(libcuda) and os.path.exists(libnvidia_ml):
            return Driver(libcuda, libnvidia_ml, token)
    return None


def cards(driver: Driver) -> tuple[str, list[Card]]:
    """The driver's version, and every GPU of the node."""
    facts = driver.facts()
    found = [
        Card(
            uuid=card["uuid"],
            model=card["model"],
            minor=card["minor"],
            total_bytes=card["total_bytes"],
            free_bytes=card["free_bytes"],
            mig=card["mig"],
            used_bytes=dict(card["processes"]),
        )
        for card in facts["cards"]
    ]
    return facts["driver"], found


def states(driver: Driver, pids: Sequence[int]) -> dict[int, Answer]:
    """The checkpoint state of each process: the driver's code, and a CUprocessState."""
    if not pids:
        return {}
    [answers] = driver.call([[Call("state", pid) for pid in pids]], deadline_s=_QUERY_DEADLINE_S)
    _require(answers[0])
    return dict(zip(pids, answers, strict=True))


def processes(driver: Driver, pids: Iterable[int], cards: Sequence[Card]) -> list[CudaProcess]:
    """The CUDA processes among *pids*. One that has only loaded the library is none."""
    answers = states(driver, users(pids))
    return [
        CudaProcess(
            pid,
            answer.value,
            {card.uuid: card.used_bytes[pid] for card in cards if pid in card.used_bytes},
        )
        for pid, answer in answers.items()
        if answer.code == cuda.SUCCESS
    ]


def perform(driver: Driver, calls: Sequence[Call], *, deadline_s: float) -> list[Answer]:
    """Make all calls at the same time, as `Driver.call` does."""
    return [answer for [answer] in driver.call([[call] for call in calls], deadline_s=deadline_s)]


def users(pids: Iterable[int]) -> list[int]:
    """Those of *pids* that have libcuda mapped: all CUDA processes, suspended ones too."""
    return [pid for pid in sorted(pids) if "/libcuda.so" in process.proc_text(pid, "maps")]


def held_nodes(pid: int) -> list[str]:
    """The NVIDIA device nodes that a process has open or mapped."""
    maps = process.proc_text(pid, "maps").splitlines()
    mapped = [line.split(None, 5)[5] for line in maps if "/dev/nvidia" in line]
    return sorted(
        {link for link in (*process.open_links(pid).values(), *mapped) if _NODE.fullmatch(link)}
    )


class _Worker:
    """A process that has loaded one of the driver's libraries, or is about to."""

    def __init__(self, library: str, token: str) -> None:
        request_fd, self._request_fd = os.pipe()
        self._answer_fd, answer_fd = os.pipe()
        error_fd = os.open(os.devnull, os.O_WRONLY)
        self._pid = process.spawn(
            process.python("grit_runtime.host.gpu_worker", library),
            token=token,
            stdin=request_fd,
            stdout=answer_fd,
            stderr=error_fd,
        )
        for fd in (request_fd, answer_fd, error_fd):
            os.close(fd)

    def send(self, calls: Sequence[Call]) -> None:
        """Ask for *calls*, or for the facts of a library that knows no calls."""
        with suppress(BrokenPipeError):  # `receive` tells
            os.write(self._request_fd, json.dumps(calls).encode() + b"\n")

    def receive(self, timeout_s: float) -> Any:
        """What the worker answers; if it has nothing to say, OVERDUE or DIED and it is gone."""
        end = time.monotonic() + timeout_s
        data = b""
        while not data.endswith(b"\n"):
            left_s = max(0.0, end - time.monotonic())
            if not select.select([self._answer_fd], [], [], left_s)[0]:
                self.end()
                return OVERDUE
            more = os.read(self._answer_fd, 1 << 16)
            if not more:
                self.end()
                return DIED
            data += more
        answer = json.loads(data)
        if isinstance(answer, dict) and "error" in answer:
            self.end()
            raise FailedPreconditionError(answer["error"])
        return answer

    def end(self) -> None:
        process.kill(self._pid)
        os.close(self._request_fd)
        os.close(self._answer_fd)


def _require(answer: Any) -> None:
    if answer == OVERDUE:
        raise CommandError(f"the GPU driver did not answer a query in {_QUERY_DEADLINE_S:.0f} s")
    if answer == DIED:
        raise CommandError("the process that asked the GPU driver died; see the kernel's log")
