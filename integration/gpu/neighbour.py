"""A second node on this machine: a process with a mount and a network namespace of its own.

It has its own containerd, directories and address, a veth between it and the first node, and does
what it is told through a pipe.
"""

from __future__ import annotations

import multiprocessing
import time
from datetime import datetime
from pathlib import Path

import pyroute2

from grit_runtime.host import linux
from integration.gpu import agent, cases, link, logs, migration, pods
from integration.gpu.bundle import PREFIX
from integration.gpu.machine import STATE, Machine
from integration.pods import kubelet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from typing import Any, Self

    from integration.gpu.cases import Job
    from integration.pods.kubelet import Pod

OURS, THEIRS, PREFIX_LENGTH = "10.77.0.1", "10.77.0.2", 30
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000  # sched.h
TIMEOUT_S = 120
STATE_B = PREFIX / "state-b"


class Neighbour:
    """The other node, from entering its context to leaving it; enter it before our `Machine`."""

    def __init__(self, library_dirs: list[Path], *, on_gpu: bool, has_disk: bool) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        arguments = (theirs, library_dirs, on_gpu, has_disk)
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        linux.call("unshare", "the network", CLONE_NEWNET)
        self._process.start()
        self._answer()
        with pyroute2.IPRoute() as ip:
            peer = {"ifname": "node-a", "net_ns_pid": self._process.pid}
            ip.link("add", ifname="node-b", kind="veth", peer=peer)
            _set_up(ip, "lo", None)
            _set_up(ip, "node-b", OURS)
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(TIMEOUT_S)
        self._process.kill()

    def ask(self, *request: object) -> Any:
        """Have the other node do a thing; what came of it."""
        self._pipe.send(request)
        return self._answer()

    def _answer(self) -> Any:
        assert self._pipe.poll(TIMEOUT_S), "the other node does not answer"
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer


def first_step_after(pod: Pod, moment: float) -> float:
    """When *pod* wrote its first line after *moment*, in seconds since the epoch."""
    return min(written for written in _moments(pod) if written > moment)


def last_step(pod: Pod) -> float:
    """When *pod* wrote its last line."""
    return max(_moments(pod))


def _moments(pod: Pod) -> list[float]:
    lines = Path(pod.log_path(pods.CONTAINER)).read_text().splitlines()
    stamps = (line.split()[0] for line in lines)
    # The kernel's nanoseconds are more than datetime reads.
    return [datetime.fromisoformat(f"{stamp[:26]}+00:00").timestamp() for stamp in stamps]


def _serve(
    pipe: Connection,
    library_dirs: list[Path],
    on_gpu: bool,  # noqa: FBT001
    has_disk: bool,  # noqa: FBT001
) -> None:
    linux.call("unshare", "mounts and network", CLONE_NEWNS | CLONE_NEWNET)
    pipe.send("here")
    pipe.recv()  # our machine is swept, and the link there
    with pyroute2.IPRoute() as ip:
        _set_up(ip, "lo", None)
        _set_up(ip, "node-a", THEIRS)
    link.serve(THEIRS)
    with (
        Machine(
            library_dirs=library_dirs, state=STATE_B, is_first=False, has_disk=has_disk
        ) as machine,
        agent.running(machine, "node-b", STATE / "etc/grit/agent"),
    ):
        room = cases.Room(machine, pods.machinery(machine, on_gpu=on_gpu))
        pipe.send("ready")
        while request := pipe.recv():
            try:
                pipe.send(_restore(room, *request))
            except Exception as error:  # noqa: BLE001  the other side raises it
                pipe.send(AssertionError(f"{type(error).__name__}: {error}"))


def _restore(
    room: cases.Room, job: Job, cards: tuple[int, ...], name: str, moment: float
) -> tuple[dict[str, float], float, dict[str, str]]:
    """Seconds by phase, when the first step after *moment* was, and the tensors' digests.

    The checkpoint is on its way from the first node when the pod is made.
    """
    spec = room.spec(job, cards, migration.asking_for(name))
    bringing = agent.prepare(spec.namespace, name, "node-a", OURS)
    with kubelet.sandbox(room.machine, spec) as pod:
        created = time.monotonic()
        pod.run_containers()
        seconds = {"start": time.monotonic() - created}
        logs.wait_for_more(pod, 1)
        seconds |= {f"restore {phase}": s for phase, s in migration.restored(pod).items()}
        first = first_step_after(pod, moment)
        seconds |= agent.brought(bringing)
        return seconds, first, cases.ask_digests(pod, 1)


def _set_up(ip: pyroute2.IPRoute, name: str, address: str | None) -> None:
    (index,) = ip.link_lookup(ifname=name)
    if address:
        ip.addr("add", index=index, address=address, prefixlen=PREFIX_LENGTH)
    ip.link("set", index=index, state="up")
