"""A last checkpoint of a pod that is to go, if a schedule of the pod has one taken then.

Whoever takes the pod away is refused until it is sealed or has failed, and tries again.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from grit_runtime import log
from grit_runtime.errors import AlreadyExistsError, BusyError, GritError, one_line
from grit_runtime.manager import api, patience, pods, retention, schedules
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.reading import readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from grit_runtime.manager.api import CheckpointSchedule
    from grit_runtime.manager.cluster import Cluster, Object

    Trigger = Literal["PodEviction", "Preemption", "JobSuspension"]

_WHY = {"PodEviction": "evicted", "Preemption": "preempted", "JobSuspension": "suspended"}
_TIMEOUT_S = 1800  # whoever waits for it is not held up for longer
# It is a last one for so long from its end. Whoever tries again does so within: a scheduler every
# 5 minutes at least (kubernetes pkg/scheduler/internal/queue).
_LAST_S = 600
_MOMENT_S = 1.0  # for which a checkpoint is waited for before the answer is no
_ANSWER_S = 3.0  # the webhook's timeout is longer, and would let the pod go
_LOOK_EVERY_S = 0.1
_ENDED = (api.CHECKPOINTED, api.FAILED)


async def require(
    cluster: Cluster, namespace: str, going: Sequence[Object], trigger: Trigger
) -> list[str]:
    """BusyError until schedules with that trigger have a last checkpoint of each of their pods.

    Which have none, and why, if none can be taken.
    """
    try:
        async with asyncio.timeout(_ANSWER_S):
            found = await cluster.every(kube.SCHEDULES, namespace)
            wanted = [
                (one, pod)
                for one in readable(api.CheckpointSchedule, found)
                for pod in going
                if trigger in one.spec.triggers
                and schedules.means(one, pod)
                and pods.is_running(pod)
            ]
            there = await cluster.every(kube.CHECKPOINTS, namespace) if wanted else []
            # All are asked for before one is waited for any longer.
            ends = await asyncio.gather(
                *(_sealed(cluster, one, pod, trigger, there) for one, pod in wanted),
                return_exceptions=True,
            )
    except TimeoutError:
        raise BusyError(
            f"last checkpoints of namespace {namespace} are asked for: try again"
        ) from None
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    untaken = [why for why in ends if isinstance(why, str)]
    for why in untaken:
        log.warning("there is no last checkpoint", reason=why)
    return untaken


async def is_held(cluster: Cluster, pod: Object) -> bool:
    """Whether it is held for a Checkpoint that is sealed. BusyError while one is taken."""
    return _is_held(pod, await cluster.every(kube.CHECKPOINTS, pod["metadata"]["namespace"]))


def _is_held(pod: Object, there: list[Object]) -> bool:
    meta = pod["metadata"]
    for checkpoint in readable(api.Checkpoint, there):
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
    cluster: Cluster,
    planned: CheckpointSchedule,
    pod: Object,
    trigger: Trigger,
    known: list[Object],
) -> str | None:
    """BusyError until it is sealed or has failed; why it cannot be taken, if that will last."""
    meta = pod["metadata"]
    series = f"{_WHY[trigger]}-{meta['uid'][:8]}"
    there = _current(planned, pod, series, known)
    if there is None:
        if _is_held(pod, known):
            return None
        # One that is a last one no more was made in an earlier period: it has another name.
        made = schedules.made(planned, pod, f"{series}-{int(time.time() / _LAST_S)}")
        made["spec"]["timeoutSeconds"] = _TIMEOUT_S
        try:
            there = await cluster.create(kube.CHECKPOINTS, made)
        except AlreadyExistsError:  # two ask at once
            there = made
        except GritError as error:
            if not patience.lasts(error):
                raise
            return (
                f"{pods.where(pod)} goes without a last checkpoint of CheckpointSchedule "
                f"{planned.metadata.name}: {one_line(error)}"
            )
    name = there["metadata"]["name"]
    end_s = time.monotonic() + _MOMENT_S
    while there and not _has_ended(there):
        if time.monotonic() > end_s:
            raise _taking(pod, name)
        await asyncio.sleep(_LOOK_EVERY_S)
        there = await cluster.find(kube.CHECKPOINTS, meta["namespace"], name)
    return None


def _current(
    planned: CheckpointSchedule, pod: Object, series: str, known: list[Object]
) -> Object | None:
    """The last checkpoint that there is: one under way, or one that ended not long ago."""
    begin = f"{schedules.made(planned, pod, series)['metadata']['name']}-"
    own = [
        one
        for one in known
        if one["metadata"]["name"].startswith(begin)
        and (one["metadata"].get("labels") or {}).get(retention.SCHEDULE) == planned.metadata.uid
    ]
    last = [one for one in own if not _has_ended(one) or _age_s(one) < _LAST_S]
    return min(last, key=_has_ended, default=None)


def _has_ended(checkpoint: Object) -> bool:
    return (checkpoint.get("status") or {}).get("phase") in _ENDED


def _age_s(ended: Object) -> float:
    moment = datetime.fromisoformat(ended["status"]["completionTime"])
    return (datetime.now(UTC) - moment).total_seconds()


def _taking(pod: Object, checkpoint: str) -> BusyError:
    return BusyError(
        f"{pods.where(pod)} is being checkpointed by Checkpoint {checkpoint}: try again"
    )
