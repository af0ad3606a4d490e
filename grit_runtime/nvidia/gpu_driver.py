"""Calling the GPU driver through workers that can be killed; and CUDA processes as /proc has them.

This process never loads a driver library itself.
"""

from __future__ import annotations

import json
import os
import select
import time
from contextlib import suppress
from typing import Any

from grit_runtime import config
from grit_runtime.errors import DriverError, FailedPreconditionError
from grit_runtime.host import process, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import nvidia_nodes
from grit_runtime.nvidia import libcuda
from grit_runtime.nvidia.libcuda import Answer, Call
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Answers that no driver gives: the worker was killed at its deadline, or died.
OVERDUE = Answer(-1)
DIED = Answer(-2)

# Where drivers are installed besides the linker's path: the root of a driver container (GPU
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


class Card(NamedTuple):
    """A GPU as the driver describes it."""

    uuid: str
    model: str
    minor: int
    total_bytes: int
    free_bytes: int
    mig: bool
    persistent: bool  # the driver keeps it initialized while nobody uses it
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

    A worker loads its library once and serves one call after another, until `close` or the end of
    this process. *token* is the operation's.
    """

    def __init__(self, libcuda: str, libnvidia_ml: str, token: str) -> None:
        self._libcuda = libcuda
        self._libnvidia_ml = libnvidia_ml
        self._token = token
        self._idle: list[_Worker] = []
        self._nvml: list[_Worker] = []

    def warm(self, count: int) -> None:
        """Start workers for *count* calls at a time, and for NVML; they load in the background."""
        self._idle += [self._start(self._libcuda) for _ in range(count - len(self._idle))]
        if not self._nvml:
            self._nvml.append(self._start(self._libnvidia_ml))

    def call(self, batches: Sequence[Sequence[Call]], *, deadline_s: float) -> list[list[Answer]]:
        """Make the calls of each batch in their order, and all batches at the same time.

        Blocks until all have answered. A worker without an answer by the deadline is killed, and
        its calls are all OVERDUE; the calls of a worker that died are DIED.
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
        """Current nvml.facts; CommandError if the driver does not answer."""
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

    If driver_dir is configured, no other place is searched.
    """
    driver_dir = config.load().driver_dir
    directories = [driver_dir] if driver_dir else [r + d for r in _ROOTS for d in _DIRECTORIES]
    for directory in directories:
        paths = f"{directory}/libcuda.so.1", f"{directory}/libnvidia-ml.so.1"
        if all(map(os.path.exists, paths)):
            return Driver(*paths, token)
    return None


def cards(driver: Driver) -> tuple[str, list[Card]]:
    """The driver's version, and every GPU of the node."""
    facts = driver.facts()
    cards = [
        Card(
            uuid=card["uuid"],
            model=card["model"],
            minor=card["minor"],
            total_bytes=card["total_bytes"],
            free_bytes=card["free_bytes"],
            mig=card["mig"],
            persistent=card["persistent"],
            used_bytes=dict(card["processes"]),
        )
        for card in facts["cards"]
    ]
    return facts["driver"], cards


def states(driver: Driver, pids: Sequence[int]) -> dict[int, Answer]:
    """The checkpoint state of each process: the driver's code and a CUprocessState."""
    if not pids:
        return {}
    [answers] = driver.call([[Call("state", pid) for pid in pids]], deadline_s=_QUERY_DEADLINE_S)
    _require(answers[0])
    return dict(zip(pids, answers, strict=True))


def processes(driver: Driver, pids: Iterable[int], cards: Sequence[Card]) -> list[CudaProcess]:
    """The CUDA processes among *pids*; a process that has only loaded the library is not one."""
    answers = states(driver, cuda_pids(pids))
    return [
        CudaProcess(
            pid,
            answer.value,
            {card.uuid: card.used_bytes[pid] for card in cards if pid in card.used_bytes},
        )
        for pid, answer in answers.items()
        if answer.code == libcuda.SUCCESS
    ]


def perform(driver: Driver, calls: Sequence[Call], *, deadline_s: float) -> list[Answer]:
    """Make all calls at the same time, as `Driver.call` does."""
    return [answer for [answer] in driver.call([[call] for call in calls], deadline_s=deadline_s)]


def cuda_pids(pids: Iterable[int]) -> list[int]:
    """Those of *pids* that have libcuda mapped: all CUDA processes, suspended ones too."""
    return [pid for pid in sorted(pids) if "/libcuda.so" in procfs.text(pid, "maps")]


def held_nodes(pid: int) -> list[str]:
    """The NVIDIA device nodes that a process has open or mapped."""
    maps = procfs.text(pid, "maps").splitlines()
    mapped = [line.split(None, 5)[5] for line in maps if "/dev/nvidia" in line]
    return sorted(
        {link for link in (*procfs.open_links(pid).values(), *mapped) if nvidia_nodes.is_node(link)}
    )


class _Worker:
    """A process that has loaded one of the driver's libraries, or is about to."""

    def __init__(self, library: str, token: str) -> None:
        request_fd, self._request_fd = os.pipe()
        self._answer_fd, answer_fd = os.pipe()
        null_fd = os.open(os.devnull, os.O_WRONLY)
        with closing_fd(request_fd), closing_fd(answer_fd), closing_fd(null_fd):
            self._pid = process.spawn(
                process.python("grit_runtime.nvidia.driver_worker", library),
                token=token,
                stdin=request_fd,
                stdout=answer_fd,
                stderr=null_fd,
            )

    def send(self, calls: Sequence[Call]) -> None:
        """Request *calls*; a worker of libnvidia-ml sends its facts whatever is requested."""
        with suppress(BrokenPipeError):  # `receive` reports it
            os.write(self._request_fd, json.dumps(calls).encode() + b"\n")

    def receive(self, timeout_s: float) -> Any:
        """The worker's answer; without one OVERDUE or DIED, and the worker is gone."""
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
        raise DriverError(f"the GPU driver did not answer a query in {_QUERY_DEADLINE_S:.0f} s")
    if answer == DIED:
        raise DriverError("the process that asked the GPU driver died; see the kernel's log")
