"""Pods of nodes that are lost: they go on elsewhere from their stores, once it is safe.

A node that does not answer may run its pods still, and a state must not go on twice. So nothing is
restored before somebody has said that the node runs no pods: as for a non-graceful shutdown
(KEP-2268), by the taint out-of-service, or by deleting the node; or by our annotation.
"""

from __future__ import annotations

from grit_runtime import log
from grit_runtime.errors import (
    AlreadyExistsError,
    BusyError,
    GritError,
    NotFoundError,
    one_line,
)
from grit_runtime.manager import (
    api,
    checkpoints,
    claims,
    events,
    fencing,
    migrations,
    moves,
    pods,
    restores,
    rollbacks,
    schedules,
    targets,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.reading import readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.api import Checkpoint
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.world import World

ON_NODE_LOSS, RESTORE = "manager.grit.dev/on-node-loss", "restore"  # an annotation of a pod

_SEALED = (api.CHECKPOINTED, api.SUBMITTED)


async def answer(world: World, name: str, told: set[str]) -> bool:
    """Restore the pods of a node that is lost, if they ask for it, or say what is waited for.

    Whether nothing is left to do. What was *told* already is not told again.
    """
    cluster = world.cluster
    node = await cluster.find(kube.NODES, "", name)
    if node is not None and not fencing.is_lost(node):
        return True
    here = await cluster.every(kube.PODS, fields=f"spec.nodeName={name}")
    asking = [pod for pod in here if _can_go_on(pod) and await asks(cluster, pod)]
    if not asking:
        return True
    if node is not None and not fencing.is_fenced(node):
        message = (
            f"{len(asking)} pods go on elsewhere as soon as it is sure that none of them runs "
            f"here: taint the node {fencing.OUT_OF_SERVICE}=nodeshutdown:NoExecute, delete it, or "
            f"annotate it {fencing.FENCED}=true"
        )
        await _tell(cluster, node, message, told)
        return False
    is_done = True
    for pod in asking:
        try:
            await _restore(world, pod)
        except GritError as error:
            is_done = False
            message = f"pod {_where(pod)} does not go on: {one_line(error)}"
            await _tell(cluster, node, message, told)
    return is_done


def _can_go_on(pod: Object) -> bool:
    return (
        pod["spec"].get("runtimeClassName") == pods.RUNTIME_CLASS
        and (pod.get("status") or {}).get("phase") == "Running"
        and (pods.owner(pod) or {}).get("kind") not in ("DaemonSet", "Node")
    )


async def asks(cluster: Cluster, pod: Object) -> bool:
    """Whether the pod is to go on when its node is lost, as it says or a schedule of it."""
    if (pod["metadata"].get("annotations") or {}).get(ON_NODE_LOSS) == RESTORE:
        return True
    found = await cluster.every(kube.SCHEDULES, pod["metadata"]["namespace"])
    planned = readable(api.CheckpointSchedule, found)
    return any("NodeLoss" in one.spec.triggers and schedules.means(one, pod) for one in planned)


async def _restore(world: World, pod: Object) -> None:
    """Have the pod go on elsewhere, and the lost one be deleted: kubelet ends it if it is back."""
    meta = pod["metadata"]
    await _wait_for_moves(world.cluster, pod)
    checkpoint = await _newest(world.cluster, pod)
    name = checkpoint.metadata.name
    move = moves.Move(
        namespace=meta["namespace"],
        name=await _restore_name(world.cluster, meta["namespace"], name),
        checkpoint=name,
        digest=checkpoint.status.manifest_digest,
        source=pod,
        source_node=pod["spec"]["nodeName"],
        leaves=True,
    )
    log.info("a lost pod goes on", pod=_where(pod), checkpoint=name)
    await moves.replace(world, move)


async def _restore_name(cluster: Cluster, namespace: str, checkpoint: str) -> str:
    """Of the Restore that is there for the Checkpoint, perhaps one that the webhook has made,
    or of a new one. AlreadyExistsError if a pod has gone on from it."""
    known = await cluster.every(kube.RESTORES, namespace)
    phases = {
        one["metadata"]["name"]: (one.get("status") or {}).get("phase")
        for one in known
        if one["spec"].get("checkpointName") == checkpoint
    }
    if api.RESTORED in phases.values():
        raise AlreadyExistsError(f"Checkpoint {checkpoint} was used: a pod has gone on from it")
    for name, phase in phases.items():
        if phase not in restores.ENDED:
            return str(name)
    return claims.free_name(checkpoint, {one["metadata"]["name"] for one in known})


async def _wait_for_moves(cluster: Cluster, pod: Object) -> None:
    """BusyError while a move is under way by which the pod goes on already, or may."""
    namespace, uid = pod["metadata"]["namespace"], pod["metadata"]["uid"]
    there = await cluster.every(kube.MIGRATIONS, namespace)
    moving: list[tuple[str, Any]] = [
        ("Migration", one)
        for one in readable(api.Migration, there)
        if uid in (one.status.source_pod_uid, one.spec.source_pod_uid)
    ]
    there = await cluster.every(kube.CHECKPOINTS, namespace)
    moving += [
        ("Checkpoint", one)
        for one in readable(api.Checkpoint, there)
        if one.spec.auto_migration and one.status.pod_uid == uid
    ]
    for kind, move in moving:
        name, now = move.metadata.name, move.status
        if now.phase in (migrations.ENDED if kind == "Migration" else checkpoints.ENDED):
            continue
        labels = f"{targets.LABEL}={targets.label(name)}"
        others = await cluster.every(kube.PODS, namespace, labels=labels)
        # One that has failed ends as soon as its source, which its node cannot let go on, is gone.
        has_failed = rollbacks.cause({"message": now.message})
        if not has_failed or any(one["metadata"]["uid"] != uid for one in others):
            raise BusyError(f"it is being moved by {kind} {name}, which is waited for")


async def _newest(cluster: Cluster, pod: Object) -> Checkpoint:
    """The pod's newest checkpoint that is in a store. NotFoundError without one."""
    meta = pod["metadata"]
    there = await cluster.every(kube.CHECKPOINTS, meta["namespace"])
    found = [
        checkpoint
        for checkpoint in readable(api.Checkpoint, there)
        if checkpoint.status.pod_uid == meta["uid"]
        and checkpoint.status.phase in _SEALED
        and checkpoint.spec.stored
    ]
    if not found:
        raise NotFoundError(
            "it has no checkpoint in a store, and what was on its node is lost with it"
        )
    return max(found, key=lambda one: one.status.completion_time)


async def _tell(cluster: Cluster, node: Object | None, message: str, told: set[str]) -> None:
    if message in told:
        return
    told.add(message)
    log.warning("a node is lost", node=node["metadata"]["name"] if node else "", reason=message)
    if node is not None:
        await events.tell(cluster, node, "Warning", "NodeLost", message)


def _where(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
