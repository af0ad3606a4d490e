"""What is told of a node that is to go, by taints and conditions; and what is done about it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Literal, cast

from grit_runtime import log
from grit_runtime.errors import GritError, one_line
from grit_runtime.manager import (
    api,
    events,
    evictions,
    migrations,
    moves,
    placement,
    pods,
    schedules,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.status import Status
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Cluster, Object

NOTICED = "manager.grit.dev/noticed"  # an annotation of a node: the notice that was answered
AT_ONCE = 4  # migrations of one node: those of most value have its network to themselves
LEAST_S = 1.0  # in less nothing is begun

# Seconds from the notice to the end, as the clouds promise them.
_SPOT_TAINTS = {
    "aws-node-termination-handler/spot-itn": 120.0,
    "cloud.google.com/impending-node-termination": 30.0,
}
_SPOT_CONDITIONS = {"PreemptScheduled": 30.0}  # node-problem-detector on AKS
_DRAIN_TAINTS = {
    "aws-node-termination-handler/asg-lifecycle-termination": "",
    "aws-node-termination-handler/scheduled-maintenance": "",
    "karpenter.sh/disrupted": "",
    "karpenter.sh/disruption": "disrupting",  # v1beta1; "candidate" is not meant
    "ToBeDeletedByClusterAutoscaler": "",
}
_DRAIN_CONDITIONS = ("DrainInProgress", "GracefulNodeShutdownInProgress")  # KEP-5683
_TOLD_LIMIT = 1000  # of an event's message


class Notice(NamedTuple):
    trigger: Literal["NodeDrain", "SpotNotice"]
    name: str  # of the taint or condition
    end: float | None  # when the node goes, since the epoch; None if nobody has said


def notice(node: Object, now: float) -> Notice | None:
    """What is told of the node; of several, what leaves the least time."""
    spec = node.get("spec") or {}
    taints = {one["key"]: one for one in spec.get("taints") or ()}
    conditions = {
        one["type"]: one
        for one in (node.get("status") or {}).get("conditions") or ()
        if one["status"] == "True"
    }
    spot = [
        Notice("SpotNotice", key, _since(taints[key].get("timeAdded"), now) + lasts_s)
        for key, lasts_s in _SPOT_TAINTS.items()
        if key in taints
    ]
    spot += [
        Notice("SpotNotice", key, _since(conditions[key].get("lastTransitionTime"), now) + lasts_s)
        for key, lasts_s in _SPOT_CONDITIONS.items()
        if key in conditions
    ]
    if spot:
        return min(spot, key=lambda one: cast("float", one.end))
    drains = [
        key
        for key, value in _DRAIN_TAINTS.items()
        if key in taints and value in ("", taints[key].get("value"))
    ]
    drains += [key for key in _DRAIN_CONDITIONS if key in conditions]
    drains += ["unschedulable"] if spec.get("unschedulable") else []
    return Notice("NodeDrain", drains[0], None) if drains else None


def _since(text: str | None, now: float) -> float:
    return datetime.fromisoformat(text).timestamp() if text else now


def rank(pod: Object) -> tuple[float, float, float, str]:
    """What the pods of a node are sorted by, for the most valuable first.

    By priority, then by GPUs, then by memory, as requested; the oldest first.
    """
    wanted = placement.requested(pod["spec"])
    gpus = sum(float(amount) for name, amount in wanted.items() if name.endswith("/gpu"))
    priority = float(pod["spec"].get("priority") or 0)
    return -priority, -gpus, -float(wanted["memory"]), pod["metadata"]["creationTimestamp"]


def is_open(node: Object) -> bool:
    """Whether there is something that is not answered, or is answered and was taken back."""
    told = notice(node, 0.0)
    return (told.trigger if told else None) != _noted(node)


def _noted(node: Object) -> str | None:
    found: str | None = (node["metadata"].get("annotations") or {}).get(NOTICED)
    return found


async def answer(cluster: Cluster, name: str) -> None:
    """Answer what is told of the node, once. A notice that is taken back may come again."""
    node = await cluster.get(kube.NODES, "", name)
    told = notice(node, datetime.now(UTC).timestamp())
    if told is None:
        await _note(cluster, name, None)
    elif told.trigger != _noted(node):
        log.info("a node is to go", node=name, notice=told.name)
        await _answer(cluster, node, told)
        await _note(cluster, name, told.trigger)


async def _note(cluster: Cluster, node: str, trigger: str | None) -> None:
    patch = {"metadata": {"annotations": {NOTICED: trigger}}}
    await cluster.patch(kube.NODES, "", node, patch)


async def _answer(cluster: Cluster, node: Object, told: Notice) -> None:
    name = node["metadata"]["name"]
    here = await cluster.every(kube.PODS, fields=f"spec.nodeName={name}")
    running = [
        pod
        for pod in sorted(here, key=rank)
        if pods.is_running(pod) and pod["spec"].get("runtimeClassName") == pods.RUNTIME_CLASS
    ]
    moving = [pod for pod in running if told.trigger == "SpotNotice" and _can_move(pod)]
    await _checkpoint(cluster, told, [pod for pod in running if pod not in moving])
    if told.end is None or not running:
        return
    left = await _move(cluster, moving, told.end)
    left |= {_where(pod): "it does not move" for pod in running if pod not in moving}
    message = f"{told.name}: {len(running) - len(left)} of {len(running)} pods have moved"
    if left:
        why = "; ".join(f"{where}: {reason}" for where, reason in left.items())
        message = f"{message}; left: {why}"[:_TOLD_LIMIT]
    await events.tell(cluster, node, "Warning" if left else "Normal", told.trigger, message)


def _can_move(pod: Object) -> bool:
    try:
        moves.refuse(pod)
    except GritError:
        return False
    return not evictions.stays(pod)


async def _checkpoint(cluster: Cluster, told: Notice, here: list[Object]) -> None:
    """Have those be checkpointed whose schedules say so; of a node that goes, into their stores."""
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for body in await cluster.every(kube.SCHEDULES):
        planned = api.read(api.CheckpointSchedule, body)
        if told.trigger not in planned.spec.triggers or not (
            planned.spec.storage or told.end is None
        ):
            continue
        status = Status(cluster, kube.SCHEDULES, body)
        for pod in here:
            if pod["metadata"]["namespace"] == planned.metadata.namespace and schedules.means(
                planned, pod
            ):
                await schedules.ask(cluster, planned, pod, moment, status)


async def _move(cluster: Cluster, moving: list[Object], end: float) -> dict[str, str]:
    """Move the pods until the end, some at a time in their order: which are left, and why."""
    slots = asyncio.Semaphore(AT_ONCE)
    left: dict[str, str] = {}

    async def move(pod: Object) -> None:
        async with slots:
            left_s = end - datetime.now(UTC).timestamp()
            if left_s < LEAST_S:
                left[_where(pod)] = "there was no time for it"
                return
            try:
                name = await evictions.move(cluster, pod, int(left_s))
                if why := await _failure(cluster, pod["metadata"]["namespace"], name):
                    left[_where(pod)] = why
            except GritError as error:
                left[_where(pod)] = one_line(error)

    await asyncio.gather(*(move(pod) for pod in moving))
    return left


async def _failure(cluster: Cluster, namespace: str, name: str) -> str:
    """Why a Migration has failed, once it has ended; "" if it has not."""
    async for found in cluster.followed(kube.MIGRATIONS, namespace, name):
        now = (found.get(name) or {}).get("status") or {}
        if name not in found:
            return "its Migration was deleted"
        if now.get("phase") in migrations.ENDED:
            return str(now.get("message", "")) if now["phase"] == api.FAILED else ""
    raise AssertionError  # a watch has no end


def _where(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
