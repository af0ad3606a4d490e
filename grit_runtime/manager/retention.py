"""Checkpoints that go because they are old, or because there are enough newer ones."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from grit_runtime import log
from grit_runtime.manager import api, migrations, pods, restores
from grit_runtime.manager import cluster as kube
from grit_runtime.model import durations, schedule
from grit_runtime.model.schedule import Taken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from grit_runtime.manager.api import Checkpoint
    from grit_runtime.manager.cluster import Cluster
    from grit_runtime.manager.world import World

SCHEDULE = "manager.grit.dev/schedule"  # a label of a Checkpoint: the uid of its schedule

ENDED = (api.CHECKPOINTED, api.SUBMITTED, api.FAILED)

_INDEX = "batch.kubernetes.io/job-completion-index"  # of a pod of an indexed Job
_LOOK_AGAIN_S = 60.0
_LISTING = asyncio.Semaphore(4)  # at its start a manager looks at all


async def run(world: World, namespace: str, name: str) -> None:
    """Have a Checkpoint that has come to its end push out older ones, and go when it is old."""
    found = await world.cluster.find(kube.CHECKPOINTS, namespace, name)
    if found is None:
        return
    checkpoint = api.read(api.Checkpoint, found)
    retention = checkpoint.spec.retention
    if retention and retention.keep:
        async with _LISTING:
            await _push_out(world.cluster, checkpoint)
    if retention and retention.max_age:
        age_s = datetime.now(UTC).timestamp() - _made(checkpoint)
        await asyncio.sleep(durations.seconds(retention.max_age) - age_s)
        while name in await _needed(world.cluster, namespace):
            await asyncio.sleep(_LOOK_AGAIN_S)
        await _remove(world.cluster, checkpoint, "it is older than its maxAge")


async def _push_out(cluster: Cluster, newest: Checkpoint) -> None:
    """Remove those of the same series that have enough newer ones."""
    namespace = newest.metadata.namespace
    living = {pod["metadata"]["uid"] for pod in await cluster.every(kube.PODS, namespace)}
    wanted = series(newest, living)
    found = {
        one.metadata.name: one
        for body in await cluster.every(kube.CHECKPOINTS, namespace)
        if series(one := api.read(api.Checkpoint, body), living) == wanted
        and not one.is_part
        and not one.metadata.deletion_timestamp
    }
    needed = await _needed(cluster, namespace)
    taken = [
        Taken(
            name,
            since(one),
            state(one),
            is_in_use=name in needed,
            keep=one.spec.retention.keep if one.spec.retention else None,
        )
        for name, one in found.items()
    ]
    for name in schedule.surplus(taken):
        await _remove(cluster, found[name], "there are enough newer ones")


def series(checkpoint: Checkpoint, living: set[str]) -> tuple[str, str]:
    """What checkpoints are counted together with this one: those of one schedule, or of none.

    A pod that is there, by its uid among the *living*, has its own; those that are gone have one
    by their owner, or by their name or index where their owner tells them apart by that.
    """
    now = checkpoint.status
    by = checkpoint.metadata.labels.get(SCHEDULE, "")
    if now.pod_uid in living:
        return by, now.pod_uid
    return by, _identity(checkpoint)


def _identity(checkpoint: Checkpoint) -> str:
    """Whose state it is, for an owner: any one's of pods that are alike, or that of an ordinal."""
    now = checkpoint.status
    owner = pods.owner(now.pod_template) if now.pod_template else None
    if owner is None or owner["kind"] == "StatefulSet":
        return now.pod_name or checkpoint.spec.pod_name
    index = (now.pod_template["metadata"].get("annotations") or {}).get(_INDEX)
    return f"{owner['uid']}/{index}" if index else str(owner["uid"])


def since(checkpoint: Checkpoint) -> float:
    """When it was sealed or has failed, since the epoch: of several that were made in one second,
    that says which is newer."""
    time = checkpoint.status.phase_time
    return datetime.fromisoformat(time).timestamp() if time else _made(checkpoint)


def state(checkpoint: Checkpoint) -> Literal["under way", "sealed", "failed"]:
    """How far it is, and whether a pod can go on from it."""
    now = checkpoint.status
    if now.phase == api.FAILED:
        # One that was sealed, and whose pod could not be moved, is a state to restore from.
        return "sealed" if now.manifest_digest else "failed"
    is_moving = checkpoint.spec.auto_migration and now.phase != api.SUBMITTED
    is_sealed = now.phase in (api.CHECKPOINTED, api.SUBMITTED) and not is_moving
    return "sealed" if is_sealed else "under way"


async def _needed(cluster: Cluster, namespace: str) -> set[str]:
    """The Checkpoints that a Restore or a Migration under way goes on from, or will."""
    needed = {
        one["spec"].get("checkpointName", "")
        for one in await cluster.every(kube.RESTORES, namespace)
        if (one.get("status") or {}).get("phase") not in restores.ENDED
    }
    moving = [
        one.get("status") or {}
        for one in await cluster.every(kube.MIGRATIONS, namespace)
        if (one.get("status") or {}).get("phase") not in migrations.ENDED
    ]
    return needed | {now.get("checkpointName", "") for now in moving}


async def _remove(cluster: Cluster, checkpoint: Checkpoint, why: str) -> None:
    meta = checkpoint.metadata
    log.info("a checkpoint is removed", name=f"{meta.namespace}/{meta.name}", reason=why)
    await cluster.delete(kube.CHECKPOINTS, meta.namespace, meta.name, meta.uid)


def _made(checkpoint: Checkpoint) -> float:
    return datetime.fromisoformat(checkpoint.metadata.creation_timestamp).timestamp()
