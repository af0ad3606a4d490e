"""The same move without grit: driver calls, runc checkpoint, runc restore, driver calls.

The least that has to be done, to see what grit adds to it: nothing is digested, packed or checked,
and the container comes back into the sandbox and on to the rw layer that it came from.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from integration.gpu import cases, driver, logs, pods
from integration.gpu.machine import STATE
from integration.gpu.results import VERIFIED, Outcome
from integration.pods import kubelet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO

    from integration.gpu.cases import Case, Room
    from integration.pods.kubelet import Pod

HAND = STATE / "by-hand"
IMAGES = Path("/mnt/grit-agent/by-hand")  # on the filesystem that grit's go to
OUTPUT = HAND / "output"
BUNDLES = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")
SHIMS_ROOT = "/run/containerd/runc/k8s.io"
OWN_ROOT = str(HAND / "runc")
NAME = "by-hand"
TIMEOUT_S = 200
POLL_S = 0.05


def tensors(gib: float, then: Callable[[Room], dict[str, float]] | None = None) -> Case:
    """One process that holds *gib* of tensors; *then* is done with the images that were dumped.

    If nothing else is, they are written to the disk.
    """
    job = cases.Job(f"hand-{gib:g}".replace(".", "-"), ("tensors", str(gib), "1"))

    def run(room: Room) -> Outcome:
        for directory in (HAND, IMAGES):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        try:
            with kubelet.running(room.machine, room.spec(job, (0,))) as pod:
                return _move(room, pod, then or _sync)
        finally:
            shutil.rmtree(IMAGES)

    return run


def _move(room: Room, pod: Pod, then: Callable[[Room], dict[str, float]]) -> Outcome:
    logs.wait(pod, lambda said: cases.min_count(said, 1) >= 3, timeout_s=logs.STARTED_S)
    before = cases.ask_digests(pod, 1)["0"]
    layers = _overlay_options(BUNDLES / pod.container_ids[pods.CONTAINER] / "rootfs")
    seconds = _checkpoint(room, pod) | then(room)
    _lay_out(room, pod, layers)
    # A container's output is a pipe, as the shim makes it; CRIU would put no file in its place.
    with (
        OUTPUT.open("wb") as file,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, text=True) as pipe,
    ):
        try:
            assert pipe.stdin is not None
            seconds |= _restore(room, pipe.stdin)
            equal = _ask_digest(_pid(room)) == before
        finally:
            _runc(room, OWN_ROOT, "delete", "--force", NAME)
            room.machine.run(["umount", str(HAND / "rootfs")])
    return Outcome(VERIFIED, _with_sums(seconds), equal)


def _checkpoint(room: Room, pod: Pod) -> dict[str, float]:
    """Suspend and dump the container of *pod*."""
    container_id = pod.container_ids[pods.CONTAINER]
    bundle = BUNDLES / container_id
    spec = json.loads((bundle / "config.json").read_text())
    spec["root"]["path"] = str(HAND / "rootfs")
    spec["linux"]["cgroupsPath"] += "-by-hand"
    (HAND / "config.json").write_text(json.dumps(spec))
    seconds = {}
    if room.machinery.on_gpu:
        pids = [pod.pid(pods.CONTAINER)]
        seconds["checkpoint gpu lock"] = driver.must("lock", pids)
        seconds["checkpoint gpu checkpoint"] = driver.must("checkpoint", pids, timeout_s=TIMEOUT_S)
    images = ["--file-locks", "--image-path", str(IMAGES), "--work-path", str(HAND)]
    seconds["checkpoint dump"] = _runc(room, SHIMS_ROOT, "checkpoint", *images, container_id)
    return seconds


def _lay_out(room: Room, pod: Pod, layers: str) -> None:
    """A bundle to bring the container of *pod* back in, when that has ended."""
    pod.wait_exited(pods.CONTAINER)
    (HAND / "rootfs").mkdir()
    room.machine.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(HAND / "rootfs")])


def _sync(room: Room) -> dict[str, float]:
    begin = time.monotonic()
    room.machine.run(["sync", "--file-system", str(IMAGES)], timeout_s=TIMEOUT_S)
    return {"checkpoint sync": time.monotonic() - begin}


def _restore(room: Room, output: IO[str]) -> dict[str, float]:
    arguments = ["--detach", "--file-locks", "--bundle", str(HAND), "--image-path", str(IMAGES)]
    arguments += ["--work-path", str(HAND), NAME]
    seconds = {"restore restore": _runc(room, OWN_ROOT, "restore", *arguments, output=output)}
    if room.machinery.on_gpu:
        pids = [_pid(room)]
        seconds["restore gpu restore"] = driver.must("restore", pids, timeout_s=TIMEOUT_S)
        seconds["restore gpu unlock"] = driver.must("unlock", pids)
    return seconds


def _runc(room: Room, root: str, *arguments: str, output: IO[str] | None = None) -> float:
    """Run runc to its end; its seconds."""
    argv: Sequence[str] = ["runc", "--root", root, "--log", str(HAND / "runc.log"), *arguments]
    begin = time.monotonic()
    with room.machine.popen(argv, stdout=output, stderr=output) as process:
        status = process.wait(TIMEOUT_S)
    assert status == 0, f"{' '.join(argv)} ended {status}: {(HAND / 'runc.log').read_text()}"
    return time.monotonic() - begin


def _pid(room: Room) -> int:
    state = room.machine.run(["runc", "--root", OWN_ROOT, "state", NAME])
    return int(json.loads(state.stdout)["pid"])


def _ask_digest(pid: int) -> str:
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + cases.DIGEST_S
    while not (found := cases.digests(OUTPUT.read_text().split("\n")[:-1])):
        assert time.monotonic() < deadline, f"no digest but {OUTPUT.read_text()}"
        time.sleep(POLL_S)
    return found[0].split()[2]


def _overlay_options(target: Path) -> str:
    """How the overlay on *target* is mounted: the layers below and above, and nothing else."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    options = next(line.split()[3] for line in lines if line.split()[1] == str(target))
    layers = ("lowerdir=", "upperdir=", "workdir=")
    return ",".join(option for option in options.split(",") if option.startswith(layers))


def _with_sums(seconds: dict[str, float]) -> dict[str, float]:
    taken = sum(value for name, value in seconds.items() if name.startswith("checkpoint"))
    back = sum(value for name, value in seconds.items() if name.startswith("restore"))
    return {"checkpoint all": taken, **seconds, "start": back}
