"""The second half of a migration: a pod goes on elsewhere from a checkpoint that it is held for.

The source stays frozen until the target is verified. Then it is deleted; if the target does not
come, it runs on. An owner that would make no second pod beside the source is the exception: its
source is deleted first, and comes back from the checkpoint if the target does not.
"""

from __future__ import annotations

import asyncio

from grit_runtime import log
from grit_runtime.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    GritError,
    NoNodeError,
    NotRestoredError,
    UnavailableError,
    of_reason,
    one_line,
)
from grit_runtime.manager import api, patience, pods, targets
from grit_runtime.manager import cluster as kube
from grit_runtime.proto import agent_pb2
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
BACK = "-back"  # of a Restore's name: of the one that brings a deleted source back

_REFUSED_OWNERS = {
    "DaemonSet": "its pods belong to their nodes",
    "Node": "a static pod belongs to its node",
}
_GRACE_S = 1  # a frozen pod does not hear that it is to end
_HELD = "; the source is held still: "
_PLACED_S = 120.0  # for a node to have room for the new pod
_ENDS_S = 60.0  # for kubelet to end a pod, and to say so


class Move(NamedTuple):
    """A pod that is to go on elsewhere."""

    namespace: str
    name: str  # of the Restore, and what a bare pod's replacement is called after
    checkpoint: str
    source: Object  # the pod, as it was checkpointed: metadata and spec
    source_node: str
    target_node: str = ""  # "": whichever the scheduler takes of those that can
    leaves: bool = False  # it may not stay on the source's node
    parent: Object | None = None  # the reference to the object that the Restore goes with

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
    made = await _make_restore(world, move, move.name, places)
    if await _has_target(world, move):
        return
    asked = await _asked(world, move, made)  # NoNodeError while the source can just run on
    if pods.owner(move.source) is None:
        await world.cluster.create(kube.PODS, asked)
    elif pods.can_detach(move.source):
        await pods.detach(world.cluster, move.source)
    else:
        # At once: kubelet may take long, and what is held does not run meanwhile.
        await _delete_source(world, move, grace_s=0)


async def replace(world: World, move: Move) -> None:
    """Have a new pod go on from the checkpoint in place of one that runs no more."""
    restore = await _make_restore(world, move, move.name, {targets.NOT_NODE: move.source_node})
    if pods.owner(move.source) is None and not await _has_target(world, move):
        await world.cluster.create(kube.PODS, await _asked(world, move, restore))
    await _delete_source(world, move, grace_s=0)


async def placed_and_restored(world: World, move: Move, limit_s: float | None) -> Object:
    """As `restored`; NoNodeError if the new pod is on no node in time, unless *limit_s* says how
    long all may take: the source stands still meanwhile."""
    try:
        async with asyncio.timeout(_PLACED_S if limit_s is None else None) as waiting:
            return await restored(world, move, placed=lambda: waiting.reschedule(None))
    except TimeoutError:
        raise NoNodeError(await _unplaced(world, move)) from None


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


async def commit(world: World, namespace: str, pod: str, uid: str) -> None:
    """Delete the source: the target has taken its place."""
    await world.cluster.delete(kube.PODS, namespace, pod, uid, grace_s=_GRACE_S)


async def roll_back(world: World, move: Move) -> str:
    """Have the source go on, and the target go. What has become of the source, in words."""
    await _withdraw(world, move)
    found = await _targets(world, move)
    is_remade = pods.owner(move.source) is not None and not pods.can_detach(move.source)
    if is_remade and not await _is_there(world, move):
        return await _bring_back(world, move, found)
    for target in found:
        # Its owner must not see two, of which it would end one, and none for a moment at most.
        await _let_go(world, target)
    await pods.attach(world.cluster, move.namespace, move.pod, move.uid)
    for target in found:
        await _end(world, target)
    where = f"pod {move.namespace}/{move.pod}"
    pod = await world.cluster.find(kube.PODS, move.namespace, move.pod)
    if pod is None or pod["metadata"]["uid"] != move.uid or pods.is_ending(pod):
        return f"{where} is gone; its state is in Checkpoint {move.checkpoint}"
    request = agent_pb2.ResumeRequest(
        target=f"{move.namespace}/{move.pod}", uid=move.uid, checkpoint=move.checkpoint
    )
    agent = await world.agents.at(move.source_node)
    await agent.ask("Resume", request, agent_pb2.ResumeReply)
    return f"{where} runs on, on node {move.source_node}"


async def _withdraw(world: World, move: Move) -> None:
    """Have no later pod of the owner go on from the checkpoint: the source does."""
    found = await world.cluster.find(kube.RESTORES, move.namespace, move.name)
    if found and (found.get("status") or {}).get("phase") in (None, api.CREATED):
        await world.cluster.delete(kube.RESTORES, move.namespace, move.name)


async def undone(world: World, move: Move, error: GritError, status: Status) -> GritError:
    """The *error* that the move has failed with, and what has become of the source by then.

    While a node does not answer, the source's or the target's, the source is held: that is waited
    for, and said.
    """

    async def tell(other: GritError) -> None:
        log.info("a source is held still", pod=move.pod, reason=one_line(other))
        await status.warn("SourceIsHeld", f"{one_line(error)}{_HELD}{one_line(other)}")

    try:
        became = await patience.unending(lambda: roll_back(world, move), tell)
    except GritError as other:
        became = f"and the source does not run on: {one_line(other)}"
    return type(error)(f"{one_line(error)}; {became}")


def cause(message: str) -> str:
    """What was the error in an object's *message*, without what `undone` has said of the source."""
    return message.partition(_HELD)[0]


async def submit(
    world: World, checkpoint: Checkpoint, status: Status, limit_s: float | None
) -> None:
    """The second half of a Checkpoint with autoMigration, but for the source's deletion."""
    meta = checkpoint.metadata
    move = Move(
        namespace=meta.namespace,
        name=meta.name,
        checkpoint=meta.name,
        source=source_of(status.now, meta.namespace),
        source_node=status.now["nodeName"],
        parent=api.reference("Checkpoint", meta),
    )
    if status.phase == api.CHECKPOINTED:
        await status.enter(api.SUBMITTING)
    try:
        async with asyncio.timeout(limit_s):
            await place(world, move)
            await placed_and_restored(world, move, limit_s)
    except (GritError, TimeoutError) as error:
        await status.confirm()
        if isinstance(error, TimeoutError):
            error = DeadlineExceededError("no pod was restored in time (timeoutSeconds)")
        raise await undone(world, move, error, status) from None


def source_of(now: Object, namespace: str) -> Object:
    """The source of a Checkpoint with the status *now*, as a pod."""
    template = now["podTemplate"]
    meta = template["metadata"] | {
        "namespace": namespace,
        "name": now["podName"],
        "uid": now["podUID"],
    }
    return {"metadata": meta, "spec": template["spec"]}


async def _make_restore(world: World, move: Move, name: str, places: dict[str, str]) -> Restore:
    reference = pods.owner(move.source)
    spec: dict[str, Any] = {"checkpointName": move.checkpoint}
    if reference:
        spec["ownerRef"] = reference
    else:
        spec["selector"] = {"matchLabels": {targets.LABEL: targets.label(name)}}
    annotations = {**places, KNOWN: ",".join(await _siblings(world, move))}
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
    if move.parent and parents and move.parent["uid"] not in parents:
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


async def _asked(world: World, move: Move, restore: Restore) -> Object:
    """A pod like a bare one, to go on in its place. NoNodeError if no node can take it."""
    found = await world.cluster.get(kube.CHECKPOINTS, move.namespace, move.checkpoint)
    checkpoint = api.read(api.Checkpoint, found)
    pod = pods.replacement(move.source, f"{move.pod[:240]}-{move.uid[:5]}")
    asking = targets.asking(pod, restore, checkpoint, world.nodes, world.checkpoint_root)
    pod["metadata"] |= {"annotations": asking.annotations, "labels": asking.labels}
    pod["spec"]["affinity"] = asking.affinity
    return pod


async def _unplaced(world: World, move: Move) -> str:
    """Why there is no new pod on a node, as far as that is known."""
    told = [pods.unscheduled(target) for target in await _targets(world, move)]
    why = next((text for text in told if text), "its owner has made no other pod")
    return f"no node has taken the new pod for {_PLACED_S:g} s (timeoutSeconds): {why}"


async def _is_there(world: World, move: Move) -> bool:
    """Whether the source is: it may not have been deleted yet."""
    pod = await world.cluster.find(kube.PODS, move.namespace, move.pod)
    return pod is not None and pod["metadata"]["uid"] == move.uid and not pods.is_ending(pod)


async def _has_target(world: World, move: Move) -> bool:
    return any(not pods.is_ending(pod) for pod in await _targets(world, move))


async def _targets(world: World, move: Move) -> list[Object]:
    """The pods that go on in the source's place: one, and those that are ending."""
    labels = f"{targets.LABEL}={targets.label(move.name)}"
    found = await world.cluster.every(kube.PODS, move.namespace, labels=labels)
    # The source has the label, too, if it came by a move of the same name.
    return [pod for pod in found if pod["metadata"]["uid"] != move.uid]


async def _end(world: World, target: Object) -> None:
    """Have the target end, and wait until it has: the source must not run beside it.

    UnavailableError if kubelet has not said so in time.
    """
    meta, namespace = target["metadata"], target["metadata"]["namespace"]
    name, uid = meta["name"], meta["uid"]
    await world.cluster.delete(kube.PODS, namespace, name, uid, grace_s=_GRACE_S)
    only = f"metadata.name={name}"
    try:
        async with asyncio.timeout(_ENDS_S):
            async for found in world.cluster.watched(kube.PODS, namespace, fields=only):
                if name not in found or found[name]["metadata"]["uid"] != uid:
                    return
    except TimeoutError:
        raise UnavailableError(
            f"pod {namespace}/{name} may run still, as node {target['spec'].get('nodeName')} does "
            "not say that it has ended; if it is sure that the node runs no pods, delete the pod "
            "by force"
        ) from None


async def _let_go(world: World, target: Object) -> None:
    """Have the owner of the target forget it."""
    if pods.can_detach(target):
        await pods.detach(world.cluster, target)


async def _bring_back(world: World, move: Move, found: list[Object]) -> str:
    """Have the owner make the source anew, on its node, from the checkpoint."""
    name = f"{move.name}{BACK}"
    await _make_restore(world, move, name, {targets.NODE: move.source_node})
    for target in found:
        await _end(world, target)
    try:
        back = await restored(world, move, name)
    except GritError as error:
        log.warning("a source does not come back", pod=move.pod, reason=one_line(error))
        return (
            f"pod {move.namespace}/{move.pod} is not back: {one_line(error)}; its state is in "
            f"Checkpoint {move.checkpoint}"
        )
    return f"pod {move.namespace}/{back['targetPod']} goes on, on node {move.source_node}"


async def _delete_source(world: World, move: Move, grace_s: int) -> None:
    await world.cluster.delete(kube.PODS, move.namespace, move.pod, move.uid, grace_s=grace_s)
