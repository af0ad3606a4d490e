"""Checkpoints of pods on this machine, and how long each phase took."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future
    from typing import Any

    from integration.pods.kubelet import Pod

RECORDS = Path("/var/lib/grit/records")
TIMEOUT_S = 240


def asking_for(name: str) -> tuple[tuple[str, str], ...]:
    """Annotations that make a pod of the default namespace a restore of the checkpoint *name*."""
    return (("grit.dev/restore-name", name),)


def directory(name: str) -> Path:
    """Where the checkpoint *name* of a pod of the default namespace is."""
    return checkpoints.ROOT / "default" / name


def take(pod: Pod, name: str, *, after: str = "stopped") -> dict[str, float]:
    """Checkpoint *pod*, which is going; seconds by phase, until it was sealed, and in all."""
    begin, begin_time = time.monotonic(), datetime.now(UTC)
    argv = [*_checkpoint(pod, name), "--after", after, "--pod-is-going"]
    said = pod.node.run(argv, timeout_s=TIMEOUT_S).stderr
    seconds = time.monotonic() - begin
    # The manifest cannot tell of what comes after it; the log can.
    lines = _logged(said)
    sealed = next(line for line in lines if line["msg"] == "seal")
    sealed_s = (datetime.fromisoformat(sealed["time"]) - begin_time).total_seconds()
    phases = [{"phase": line["msg"], "seconds": float(line["seconds"])} for line in lines]
    return {"all": seconds, "sealed": sealed_s, **_by_phase(phases)}


def wait_for(name: str, taking: Future[dict[str, float]]) -> None:
    """Until the checkpoint *name* is sealed, or its *taking* has failed, which is raised."""
    while not directory(name).exists():
        if taking.done():
            taking.result()
        time.sleep(0.01)


def refusal(pod: Pod, name: str) -> str:
    """Why a checkpoint of *pod*, which would run on, is refused."""
    done = pod.node.run(_checkpoint(pod, name), check=False, timeout_s=TIMEOUT_S)
    assert done.returncode != 0, "the checkpoint was not refused"
    assert not directory(name).exists(), "a refused checkpoint left something"
    return done.stderr.strip().splitlines()[-1]


def processes(pod: Pod) -> list[int]:
    """The pids of the CUDA processes of *pod*, as grit finds them."""
    done = pod.node.run(["grit", "gpu", "state", f"{pod.spec.namespace}/{pod.spec.name}"])
    return [int(line.split()[0]) for line in done.stdout.splitlines()]


def _checkpoint(pod: Pod, name: str) -> list[str]:
    return ["grit", "checkpoint", f"{pod.spec.namespace}/{pod.spec.name}", "--name", name]


def restored(pod: Pod) -> dict[str, float]:
    """What the node remembers of the restore that *pod* is: seconds by phase."""
    records = json.loads((RECORDS / f"{pod.spec.uid}.json").read_text())
    (record,) = [record for record in records if record["outcome"] == "restored"]
    return _by_phase(record["timeline"])


def forget(name: str) -> None:
    """Remove the checkpoint *name*, if it came to be."""
    shutil.rmtree(directory(name), ignore_errors=True)


def _logged(text: str) -> list[dict[str, str]]:
    """The lines of grit's log that end a phase."""
    lines = [dict(word.split("=", 1) for word in shlex.split(line)) for line in text.splitlines()]
    return [line for line in lines if "seconds" in line]


def _by_phase(timeline: Iterable[dict[str, Any]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for entry in timeline:
        name = entry["phase"]
        seconds[name] = seconds.get(name, 0.0) + entry["seconds"]
    return seconds
