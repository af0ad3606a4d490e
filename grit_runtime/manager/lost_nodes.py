"""Pods of nodes that are lost: they go on elsewhere from their stores, once it is safe.

A node that does not answer may run its pods still, and a state must not go on twice. So nothing is
restored before somebody has said that the node runs no pods: as for a non-graceful shutdown
(KEP-2268), by the taint out-of-service, or by deleting the node; or by our annotation.
"""

from __future__ import annotations

from typing import cast

import kopf

from grit_runtime import log
from grit_runtime.errors import AlreadyExistsError, GritError, NotFoundError, one_line
from grit_runtime.manager import api, moves, pods, restores, schedules
from grit_runtime.manager import cluster as kube

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.api import Checkpoint
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.world import World

ON_NODE_LOSS, RESTORE = "manager.grit.dev/on-node-loss", "restore"  # an annotation of a pod
FENCED = "manager.grit.dev/fenced"  # of a node: "true" if it runs no pods

_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_SEALED = (api.CHECKPOINTED, api.SUBMITTED)


def is_lost(node: Object) -> bool:
    """Whether nothing is heard of the node."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] != "True" for one in conditions)


def is_fenced(node: Object) -> bool:
    """Whether somebody has said that the node runs no pods."""
    taints = (node.get("spec") or {}).get("taints") or ()
    return (node["metadata"].get("annotations") or {}).get(FENCED) == "true" or any(
        one["key"] == _OUT_OF_SERVICE for one in taints
    )


async def answer(world: World, name: str) -> None:
    """Restore the pods of a node that is lost, if they ask for it, or say what is waited for."""
    cluster = world.cluster
    node = await cluster.find(kube.NODES, "", name)
    if node is not None and not is_lost(node):
        return
    here = await cluster.every(kube.PODS, fields=f"spec.nodeName={name}")
    asking = [pod for pod in here if _can_go_on(pod) and await asks(cluster, pod)]
    if not asking:
        return
    if node is not None and not is_fenced(node):
        _tell(
            node,
            f"{len(asking)} pods go on elsewhere as soon as it is sure that none of them runs "
            f"here: taint the node {_OUT_OF_SERVICE}=nodeshutdown:NoExecute, delete it, or "
            f"annotate it {FENCED}=true",
        )
        return
    for pod in asking:
        try:
            await _restore(world, pod)
        except GritError as error:
            log.warning("a lost pod does not go on", pod=_where(pod), reason=one_line(error))
            if node is not None:
                _tell(node, f"pod {_where(pod)} does not go on: {one_line(error)}")


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
    planned = [api.read(api.CheckpointSchedule, body) for body in found]
    return any("NodeLoss" in one.spec.triggers and schedules.means(one, pod) for one in planned)


async def _restore(world: World, pod: Object) -> None:
    """Have the pod go on elsewhere, and the lost one be deleted: kubelet ends it if it is back."""
    meta = pod["metadata"]
    checkpoint = await _newest(world.cluster, pod)
    # The webhook calls its Restore so, too, for a pod that an owner makes: there is one of them.
    name = checkpoint.metadata.name
    there = await world.cluster.find(kube.RESTORES, meta["namespace"], name)
    if there and (there.get("status") or {}).get("phase") in restores.ENDED:
        raise AlreadyExistsError(f"Restore {name} is there already: Checkpoint {name} was used")
    move = moves.Move(
        namespace=meta["namespace"],
        name=name,
        checkpoint=name,
        source=pod,
        source_node=pod["spec"]["nodeName"],
        leaves=True,
    )
    log.info("a lost pod goes on", pod=_where(pod), checkpoint=name)
    await moves.replace(world, move)


async def _newest(cluster: Cluster, pod: Object) -> Checkpoint:
    """The pod's newest checkpoint that is in a store. NotFoundError without one."""
    meta = pod["metadata"]
    found = [
        checkpoint
        for body in await cluster.every(kube.CHECKPOINTS, meta["namespace"])
        if (checkpoint := api.read(api.Checkpoint, body)).status.pod_uid == meta["uid"]
        and checkpoint.status.phase in _SEALED
        and checkpoint.spec.stored
    ]
    if not found:
        raise NotFoundError(
            "it has no checkpoint in a store, and what was on its node is lost with it"
        )
    return max(found, key=lambda one: one.status.completion_time)


def _tell(node: Object, message: str) -> None:
    kopf.event(kopf.Body(cast("Any", node)), type="Warning", reason="NodeLost", message=message)


def _where(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
