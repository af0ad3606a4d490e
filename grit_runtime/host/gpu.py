"""The GPU driver, asked through workers that can be killed; and what /proc says of CUDA processes.

Never loads a driver library itself.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
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
_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
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


class Driver(NamedTuple):
    """The driver's libraries on this node, and the token of the operation that asks."""

    libcuda: str
    libnvidia_ml: str
    token: str


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
    facts = _ask_one(driver, {"libnvidia_ml": driver.libnvidia_ml})
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
    calls = [Call("state", pid) for pid in pids]
    answers = _ask_one(driver, {"libcuda": driver.libcuda, "calls": calls})
    return {pid: Answer(*answer) for pid, answer in zip(pids, answers, strict=True)}


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
    """Make all calls at the same time, each in a worker of its own.

    Blocks until all have answered; a worker that has not by the deadline is killed (OVERDUE).
    """
    workers = [_Worker(driver, {"libcuda": driver.libcuda, "calls": [call]}) for call in calls]
    end = time.monotonic() + deadline_s
    return [_answer(worker.result(max(0.0, end - time.monotonic()))) for worker in workers]


def users(pids: Iterable[int]) -> list[int]:
    """Those of *pids* that have libcuda mapped: all CUDA processes, suspended ones too."""
    return [pid for pid in sorted(pids) if "/libcuda.so" in process.proc_text(pid, "maps")]


def held_nodes(pid: int) -> list[str]:
    """The NVIDIA device nodes that a process has open or mapped."""
    maps = process.proc_text(pid, "maps").splitlines()
    mapped = [line.split(None, 5)[5] for line in maps if "/dev/nvidia" in line]
    return sorted({link for link in (*process.open_links(pid), *mapped) if _NODE.fullmatch(link)})


class _Worker:
    """One request under way in a process of its own."""

    def __init__(self, driver: Driver, request: dict[str, Any]) -> None:
        request_fd = os.memfd_create("request")
        os.write(request_fd, json.dumps(request).encode())
        os.lseek(request_fd, 0, os.SEEK_SET)
        self._answer_fd, write_fd = os.pipe()
        self._error_fd = os.memfd_create("stderr")
        code = f"import sys; sys.path.append({_PACKAGE_DIR!r}); "
        code += "from grit_runtime.host.gpu_worker import main; main()"
        self.pid = process.spawn(
            [sys.executable, "-ISE", "-c", code],
            token=driver.token,
            stdin=request_fd,
            stdout=write_fd,
            stderr=self._error_fd,
        )
        os.close(request_fd)
        os.close(write_fd)

    def result(self, timeout_s: float) -> Any:
        """What the worker answered; OVERDUE or DIED if nothing."""
        with open(self._answer_fd, "rb") as answers, open(self._error_fd, "rb"):
            if not select.select([answers], [], [], timeout_s)[0]:
                process.kill(self.pid)
                return OVERDUE
            data = answers.read()
            status = process.wait(self.pid)
        return json.loads(data) if status == 0 else DIED


def _ask_one(driver: Driver, request: dict[str, Any]) -> Any:
    answer = _Worker(driver, request).result(_QUERY_DEADLINE_S)
    if answer == OVERDUE:
        raise CommandError(f"the GPU driver did not answer a query in {_QUERY_DEADLINE_S:.0f} s")
    if answer == DIED:
        raise CommandError("the process that asked the GPU driver died; see the kernel's log")
    return _unless_error(answer)


def _answer(answer: Any) -> Answer:
    if answer in (OVERDUE, DIED):
        return Answer(*answer)
    return Answer(*_unless_error(answer)[0])


def _unless_error(answer: Any) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        raise FailedPreconditionError(answer["error"])
    return answer
