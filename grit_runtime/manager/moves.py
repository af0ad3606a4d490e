"""The second half of a migration: a pod goes on elsewhere from a checkpoint that it is held for.

The source stays frozen until the target is verified. Then it is deleted; if the target does not
come, it runs on. An owner that would make no second pod beside the source is the exception: its
source is deleted first, and comes back from the checkpoint if the target does not.
"""

from __future__ import annotations

import asyncio

from grit_runtime.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    GritError,
    NoNodeError,
    NotRestoredError,
    of_reason,
    one_line,
)
from grit_runtime.manager import api, claims, patience, pods, storage, targets
from grit_runtime.manager import cluster as kube
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from grit_runtime.manager.api import Checkpoint, Restore
    from grit_runtime.manager.cluster import Object
    from grit_runtime.manager.status import Status
    from grit_runtime.manager.world import World

KNOWN = "manager.grit.dev/known-pods"  # of a Restore: pods of the owner that were there before

_REFUSED_OWNERS = {
    "DaemonSet": "its pods belong to their nodes",
    "Node": "a static pod belongs to its node",
}
GRACE_S = 1  # a frozen pod does not hear that it is to end
_PLACED_S = 120.0  # for a node to have room for the new pod


class Move(NamedTuple):
    """A pod that is to go on elsewhere."""

    namespace: str
    name: str  # of the Restore, and what a bare pod's replacement is called after
    checkpoint: str
    digest: str  # of its manifest, which a pod that goes on from it has; "" if that is not known
    source: Object  # the pod, as it was checkpointed: metadata and spec
    source_node: str
    target_node: str = ""  # "": whichever the scheduler takes of those that can
    leaves: bool = False  # it may not stay on the source's node
    parent: Object | None = None  # the reference to the object that the Restore goes with
    timeout_s: int | None = None  # of the object: how long all may take

    @property
    def uid(self) -> str:
        return str(self.source["metadata"]["uid"])

    @property
    def pod(self) -> str:
        return str(self.source["metadata"]["name"])


def refuse(pod: Object) -> None:
    """FailedPreconditionError for a pod that can go nowhere."""
    reference = pods.owner(pod)
    why = _REFUSED_OWNERS.get(reference["kind"]) if reference else None
    if why:
        meta = pod["metadata"]
        raise FailedPreconditionError(
            f"pod {meta['namespace']}/{meta['name']} is of a {reference['kind']}, and is not "  # type: ignore[index]
            f"moved: {why}"
        )


async def place(world: World, move: Move) -> None:
    """Have a new pod come that goes on from the checkpoint. Harmless if it is there."""
    places = {targets.NODE: move.target_node} if move.target_node else {}
    if move.leaves:
        places[targets.NOT_NODE] = move.source_node
    made = await make_restore(world, move, move.name, places)
    there = await has_target(world, move)
    pod = None if there else await asked(world, move, made)  # NoNodeError while all can run on
    if await is_alone(world, move):
        await pods.let_go(world.cluster, move.source)
        # At once: kubelet may take long, and what is held does not run meanwhile.
        await _delete_source(world, move, grace_s=0)
    elif pods.owner(move.source) and not there:
        await pods.detach(world.cluster, move.source)
    if pod and pods.owner(move.source) is None:
        await world.cluster.create(kube.PODS, pod)


async def is_alone(world: World, move: Move) -> bool:
    """Whether there is to be no second pod beside the source: its owner would make none, or one
    that waits for a volume that the source's node has."""
    if pods.owner(move.source) and not pods.can_detach(move.source):
        return True
    return await storage.is_of_one_node(world.cluster, move.namespace, move.source["spec"])


async def replace(world: World, move: Move) -> None:
    """Have a new pod go on from the checkpoint in place of one that runs no more."""
    restore = await make_restore(world, move, move.name, {targets.NOT_NODE: move.source_node})
    if pods.owner(move.source) is None and not await has_target(world, move):
        await world.cluster.create(kube.PODS, await asked(world, move, restore))
    await _delete_source(world, move, grace_s=0)


async def placed_and_restored(
    world: World, move: Move, limit_s: float | None, name: str = ""
) -> Object:
    """As `restored`; NoNodeError if the new pod is on no node in time, unless *limit_s* says how
    long all may take: the source stands still meanwhile."""
    try:
        async with asyncio.timeout(_PLACED_S if limit_s is None else None) as waiting:
            return await restored(world, move, name, placed=lambda: waiting.reschedule(None))
    except TimeoutError:
        raise NoNodeError(await _unplaced(world, move, name)) from None


async def restored(
    world: World, move: Move, name: str = "", *, placed: Callable[[], None] = lambda: None
) -> Object:
    """The status of the Restore, once its pod is verified. The error that it has failed with.

    It tells when the pod is *placed*, perhaps more than once.
    """
    name = name or move.name
    async for found in world.cluster.followed(kube.RESTORES, move.namespace, name):
        if name not in found:
            raise NotRestoredError(f"Restore {move.namespace}/{name} was deleted")
        now: Object = found[name].get("status") or {}
        if now.get("phase") == api.RESTORED:
            return now
        if now.get("phase") == api.RESTORING:
            placed()
        if now.get("phase") == api.FAILED:
            raise of_reason(now.get("reason", ""))(now.get("message", ""))
    raise AssertionError  # a watch has no end


async def verified(world: World, move: Move) -> Object | None:
    """The status of the move's Restore, if its pod has been verified: nothing is undone then."""
    found = await world.cluster.find(kube.RESTORES, move.namespace, move.name)
    if found is None or (found.get("status") or {}).get("phase") != api.RESTORED:
        return None
    parents = {one["uid"] for one in found["metadata"].get("ownerReferences") or ()}
    is_own = move.parent and move.parent["uid"] in parents
    if found["spec"].get("checkpointName") != move.checkpoint:
        return None
    # One without a parent is the webhook's, for a pod that the owner has made by itself.
    if not is_own and (parents or not _is_meant(move, found)):
        return None
    now: Object = found["status"]
    return now


def _is_meant(move: Move, restore: Object) -> bool:
    """Whether a Restore without a parent is by this very checkpoint of the source."""
    sealed = {"status": {"manifestDigest": move.digest}}
    return claims.source_uid(restore) == move.uid and claims.is_of(restore, sealed)


async def commit(world: World, namespace: str, pod: str, uid: str, status: Status) -> None:
    """Delete the source: the target has taken its place. What somebody has to mend is waited for,
    and said."""

    async def tell(error: GritError) -> None:
        await status.warn("SourceIsLeft", f"the source is not deleted yet: {one_line(error)}")

    await patience.until_mended(lambda: end_source(world, namespace, pod, uid), tell)


async def end_source(world: World, namespace: str, pod: str, uid: str) -> None:
    """Delete it, if it is there."""
    await world.cluster.delete(kube.PODS, namespace, pod, uid, grace_s=GRACE_S)


def of_checkpoint(checkpoint: Checkpoint, now: Object) -> Move:
    """What a Checkpoint with autoMigration and the status *now* makes of its pod."""
    meta = checkpoint.metadata
    return Move(
        namespace=meta.namespace,
        name=meta.name,
        checkpoint=meta.name,
        digest=now["manifestDigest"],
        source=source_of(now, meta.namespace),
        source_node=now["nodeName"],
        parent=api.reference("Checkpoint", meta),
        timeout_s=checkpoint.spec.timeout_seconds,
    )


def source_of(now: Object, namespace: str) -> Object:
    """The source of a Checkpoint with the status *now*, as a pod."""
    template = now["podTemplate"]
    meta = template["metadata"] | {
        "namespace": namespace,
        "name": now["podName"],
        "uid": now["podUID"],
    }
    return {"metadata": meta, "spec": template["spec"]}


async def make_restore(world: World, move: Move, name: str, places: dict[str, str]) -> Restore:
    reference = pods.owner(move.source)
    spec: dict[str, Any] = {"checkpointName": move.checkpoint}
    if move.timeout_s and name == move.name:
        spec["timeoutSeconds"] = move.timeout_s
    if reference:
        spec["ownerRef"] = reference
    else:
        spec["selector"] = {"matchLabels": {targets.LABEL: targets.label(name)}}
    siblings = ",".join(await _siblings(world, move))
    annotations = {**places, KNOWN: siblings, claims.SOURCE: move.uid}
    if reference is None:
        annotations[targets.SELECTED] = "true"
    meta: dict[str, Any] = {"name": name, "namespace": move.namespace}
    meta["annotations"] = annotations
    if move.parent:
        meta["ownerReferences"] = [move.parent]
    found = await world.cluster.find(kube.RESTORES, move.namespace, name)
    if found is None:
        try:
            found = await world.cluster.create(kube.RESTORES, api.made("Restore", meta, spec))
        except AlreadyExistsError:  # the webhook was quicker
            found = await world.cluster.get(kube.RESTORES, move.namespace, name)
    restore = api.read(api.Restore, found)
    parents = {one.uid for one in restore.metadata.owner_references}
    # One without a parent is the webhook's, for a pod that the owner has made by itself.
    is_usable = not parents and (
        restore.spec.checkpoint_name == move.checkpoint
        and (found.get("status") or {}).get("phase") not in (api.RESTORED, api.FAILED)
    )
    if move.parent and move.parent["uid"] not in parents and not is_usable:
        raise AlreadyExistsError(
            f"Restore {move.namespace}/{name} is none of {move.parent['kind']} "
            f"{move.parent['name']}'s: give it another name, or wait until that Restore has gone"
        )
    return restore


async def _siblings(world: World, move: Move) -> list[str]:
    """The uids of all pods of the source's owner."""
    reference = pods.owner(move.source)
    if reference is None:
        return []
    found = await world.cluster.every(kube.PODS, move.namespace)
    return [pod["metadata"]["uid"] for pod in found if pods.is_of(pod, reference["uid"])]


async def asked(world: World, move: Move, restore: Restore) -> Object:
    """A pod like a bare one, to go on in its place. NoNodeError if no node can take it."""
    found = await world.cluster.get(kube.CHECKPOINTS, move.namespace, move.checkpoint)
    checkpoint = api.read(api.Checkpoint, found)
    pod = pods.replacement(move.source, f"{move.pod[:240]}-{move.uid[:5]}")
    asking = targets.asking(pod, restore, checkpoint, world.nodes, world.checkpoint_root)
    pod["metadata"] |= {"annotations": asking.annotations, "labels": asking.labels}
    pod["spec"]["affinity"] = asking.affinity
    return pod


async def _unplaced(world: World, move: Move, name: str) -> str:
    """Why there is no new pod on a node, as far as that is known."""
    told = [pods.unscheduled(target) for target in await targets_of(world, move, name)]
    why = next((text for text in told if text), "its owner has made no other pod")
    return f"no node has taken the new pod for {_PLACED_S:g} s (timeoutSeconds): {why}"


async def has_target(world: World, move: Move, name: str = "") -> bool:
    """Whether there is a pod already for the move's Restore, or the one of that *name*."""
    return any(not pods.is_ending(pod) for pod in await targets_of(world, move, name))


async def targets_of(world: World, move: Move, name: str = "") -> list[Object]:
    """The pods that go on in the source's place: one, and those that are ending."""
    labels = f"{targets.LABEL}={targets.label(name or move.name)}"
    found = await world.cluster.every(kube.PODS, move.namespace, labels=labels)
    # What came by another move of the same name has the label, too: the source may have.
    return [
        pod
        for pod in found
        if pod["metadata"]["uid"] != move.uid and move.digest in ("", pods.came_from(pod))
    ]


async def _delete_source(world: World, move: Move, grace_s: int) -> None:
    await world.cluster.delete(kube.PODS, move.namespace, move.pod, move.uid, grace_s=grace_s)
