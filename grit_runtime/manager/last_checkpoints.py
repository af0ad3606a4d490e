"""A last checkpoint of a pod that is to go, if a schedule of the pod has one taken then.

Whoever takes the pod away is refused until it is sealed or has failed, and tries again.
"""

from __future__ import annotations

import asyncio
import time

from grit_runtime.errors import BusyError
from grit_runtime.manager import api, pods, schedules
from grit_runtime.manager import cluster as kube

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from grit_runtime.manager.api import CheckpointSchedule
    from grit_runtime.manager.cluster import Cluster, Object

    Trigger = Literal["PodEviction", "Preemption", "JobSuspension"]

_WHY = {"PodEviction": "evicted", "Preemption": "preempted", "JobSuspension": "suspended"}
_TIMEOUT_S = 1800  # whoever waits for it is not held up for longer
# It is a last one for so long, and twice as long at most. Whoever tries again does so within: a
# scheduler every 5 minutes at least (kubernetes pkg/scheduler/internal/queue).
_LAST_S = 600
_MOMENT_S = 1.0  # for which a checkpoint is waited for before the answer is no
_ANSWER_S = 3.0  # the webhook's timeout is longer, and would let the pod go
_LOOK_EVERY_S = 0.1
_ENDED = (api.CHECKPOINTED, api.FAILED)


async def require(
    cluster: Cluster, namespace: str, going: Sequence[Object], trigger: Trigger
) -> None:
    """BusyError until schedules with that trigger have a last checkpoint of each of their pods."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            found = await cluster.every(kube.SCHEDULES, namespace)
            planned = [api.read(api.CheckpointSchedule, body) for body in found]
            asked = (
                _sealed(cluster, one, pod, trigger)
                for one in planned
                for pod in going
                if trigger in one.spec.triggers
                and schedules.means(one, pod)
                and pods.is_running(pod)
            )
            # All are asked for before one is waited for any longer.
            for ended in await asyncio.gather(*asked, return_exceptions=True):
                if ended is not None:
                    raise ended
    except TimeoutError:
        raise BusyError(
            f"last checkpoints of namespace {namespace} are asked for: try again"
        ) from None


async def is_held(cluster: Cluster, pod: Object) -> bool:
    """Whether it is held for a Checkpoint that is sealed. BusyError while one is taken."""
    meta = pod["metadata"]
    for body in await cluster.every(kube.CHECKPOINTS, meta["namespace"]):
        checkpoint = api.read(api.Checkpoint, body)
        if checkpoint.is_part:  # of a Migration, which has ended: the pod runs on
            continue
        spec, now = checkpoint.spec, checkpoint.status
        uid = now.pod_uid or spec.source_pod_uid
        if uid != meta["uid"] and (uid or spec.pod_name != meta["name"]):
            continue
        if now.phase not in (api.CHECKPOINTED, api.SUBMITTED, api.FAILED) or (
            spec.auto_migration and now.phase == api.CHECKPOINTED
        ):
            raise _taking(pod, checkpoint.metadata.name)
        if spec.after == "frozen" and now.phase == api.CHECKPOINTED:
            return True
    return False


async def _sealed(
    cluster: Cluster, planned: CheckpointSchedule, pod: Object, trigger: Trigger
) -> None:
    namespace = pod["metadata"]["namespace"]
    period = int(time.time() / _LAST_S)
    newest, before = (
        schedules.made(planned, pod, f"{_WHY[trigger]}-{pod['metadata']['uid'][:8]}-{number}")
        for number in (period, period - 1)
    )
    for made in (newest, before):
        name = made["metadata"]["name"]
        if there := await cluster.find(kube.CHECKPOINTS, namespace, name):
            break
    else:
        if await is_held(cluster, pod):
            return
        newest["spec"]["timeoutSeconds"] = _TIMEOUT_S
        name = newest["metadata"]["name"]
        there = await cluster.create(kube.CHECKPOINTS, newest)
    end_s = time.monotonic() + _MOMENT_S
    while there and (there.get("status") or {}).get("phase") not in _ENDED:
        if time.monotonic() > end_s:
            raise _taking(pod, name)
        await asyncio.sleep(_LOOK_EVERY_S)
        there = await cluster.find(kube.CHECKPOINTS, namespace, name)


def _taking(pod: Object, checkpoint: str) -> BusyError:
    return BusyError(
        f"{pods.where(pod)} is being checkpointed by Checkpoint {checkpoint}: try again"
    )
