"""What the workloads say, waited for."""

from __future__ import annotations

import time

from grit_runtime.proto import cri_pb2
from integration.gpu.pods import CONTAINER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.pods.kubelet import Pod

POLL_S = 0.05
STARTED_S = 90
SAID_LINES = 15


def wait(pod: Pod, enough: Callable[[list[str]], bool], *, timeout_s: float) -> list[str]:
    """The whole lines that *pod* has written, once they are *enough*."""
    deadline = time.monotonic() + timeout_s
    while not enough(said := lines(pod)):
        ended = pod.status(CONTAINER).state == cri_pb2.CONTAINER_EXITED
        last = "\n".join(said[-SAID_LINES:])
        assert not ended, f"the workload ended:\n{last}"
        assert time.monotonic() < deadline, f"nothing more in {timeout_s} s than:\n{last}"
        time.sleep(POLL_S)
    return said


def lines(pod: Pod) -> list[str]:
    """The whole lines that *pod* has written so far."""
    return pod.logs(CONTAINER).split("\n")[:-1]


def wait_for_more(pod: Pod, count: int, *, timeout_s: float = 60) -> list[str]:
    """All lines, once there are *count* more than now."""
    goal = len(lines(pod)) + count
    return wait(pod, lambda said: len(said) >= goal, timeout_s=timeout_s)
