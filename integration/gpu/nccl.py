"""Which of a job's NCCL transports and surroundings the driver can suspend: by hand, in place.

Two ranks in a pod were answered 304 at the checkpoint where bare ranks with the same environment
had come back. Each case here changes one thing between the two.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

from integration import kubelet, rootfs
from integration.gpu import cases, driver, logs, pods
from integration.gpu.machine import STATE
from integration.gpu.results import FAILED, IN_PLACE, Outcome
from integration.pod_spec import EmptyDir, Security, VolumeMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.gpu.cases import Case, Pairs, Room
    from integration.pod_spec import PodSpec

SOCKETS = (*cases.SAFE_NCCL, ("NCCL_SHM_DISABLE", "1"))
NO_CUMEM_HOST = (*cases.SAFE_NCCL, ("NCCL_CUMEM_HOST_ENABLE", "0"))
OUTPUT = STATE / "ranks"
RENDEZVOUS = "/tmp/rendezvous"  # as in two_ranks, which imports PyTorch
VERBS = ("lock", "checkpoint", "state", "restore", "unlock", "state")
ANSWER_S = 30
STEPS = 10


def in_pod(env: Pairs, change: Callable[[PodSpec], PodSpec] = lambda spec: spec) -> Case:
    """Ranks in a pod whose spec *change* has changed."""

    def run(room: Room) -> Outcome:
        job = cases.Job("ranks", ("two_ranks",), env=env)
        with kubelet.running(room.machine, change(room.spec(job, (0, 1)))) as pod:
            cases.wait_for_steps(pod, 5)
            answers, well = suspend(_children(pod.pid(pods.CONTAINER)))
            if well:
                cases.goes_on(pod, None)
        return Outcome(IN_PLACE if well else FAILED, {}, note=answers)

    return run


def bare(env: Pairs) -> Case:
    """Ranks that are processes of the machine, in no container."""

    def run(room: Room) -> Outcome:
        argv = [room.machinery.python, "-m", f"{pods.WORKLOADS}.two_ranks"]
        environment = {**room.machinery.environment, "PYTHONPATH": str(rootfs.REPO), **dict(env)}
        Path(RENDEZVOUS).unlink(missing_ok=True)
        with OUTPUT.open("wb") as file:
            first = subprocess.Popen(
                argv, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        try:
            _wait_for_steps(5)
            answers, well = suspend(_children(first.pid))
            if well:
                _wait_for_steps(_steps() + STEPS)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
        return Outcome(IN_PLACE if well else FAILED, {}, note=answers)

    return run


def suspend(pids: list[int]) -> tuple[str, bool]:
    """Suspend and resume *pids*, all at once; the driver's answers, and whether all were 0."""
    said = []
    well = True
    for verb in VERBS:
        answers = driver.call(verb, pids, timeout_s=ANSWER_S)
        codes = [answer.code for answer in answers]
        values = [answer.value for answer in answers] if verb in driver.QUERIES else ""
        said.append(f"{verb} {codes} {values}".rstrip())
        well &= not any(codes)
    return "; ".join(said), well


def privileged(spec: PodSpec) -> PodSpec:
    return _secured(spec, Security(privileged=True))


def locking_memory(spec: PodSpec) -> PodSpec:
    return _secured(spec, Security(add_capabilities=("IPC_LOCK",)))


def with_large_shm(spec: PodSpec) -> PodSpec:
    """A memory volume of any size where the sandbox's 64 MiB would be."""
    (container,) = spec.containers
    mounts = (*container.mounts, VolumeMount("shm", "/dev/shm"))
    return dataclasses.replace(
        spec,
        volumes=(*spec.volumes, EmptyDir("shm", in_memory=True)),
        containers=(dataclasses.replace(container, mounts=mounts),),
    )


def on_hosts_pids(spec: PodSpec) -> PodSpec:
    return dataclasses.replace(spec, host_pid=True)


def _secured(spec: PodSpec, security: Security) -> PodSpec:
    (container,) = spec.containers
    return dataclasses.replace(
        spec, containers=(dataclasses.replace(container, security=security),)
    )


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for_steps(count: int) -> None:
    deadline = time.monotonic() + logs.STARTED_S
    while _steps() < count:
        assert time.monotonic() < deadline, f"no {count} steps but:\n{OUTPUT.read_text()}"
        time.sleep(logs.POLL_S)


def _steps() -> int:
    return len(cases.steps(OUTPUT.read_text().split("\n")[:-1]))
