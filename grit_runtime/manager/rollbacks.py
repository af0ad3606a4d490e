"""Undoing the second half of a migration: the target goes, and the source goes on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from grit_runtime import log
from grit_runtime.errors import (
    GritError,
    UnavailableError,
    of_reason,
    one_line,
    reason,
)
from grit_runtime.manager import api, moves, patience, pods, targets
from grit_runtime.manager import cluster as kube
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from grit_runtime.manager.cluster import Object
    from grit_runtime.manager.moves import Move
    from grit_runtime.manager.status import Status
    from grit_runtime.manager.world import World

_HELD = "; the source is held still: "
_ENDS_S = 60.0  # for kubelet to end a pod, and to say so


async def roll_back(world: World, move: Move) -> str:
    """Have the source go on, and the target go. What has become of the source, in words."""
    if await moves.is_alone(world, move) and not await _is_there(world, move):
        return await _bring_back(world, move)
    await _withdraw(world, move)
    found = await moves.targets_of(world, move)
    for target in found:
        # Its owner must not see two, of which it would end one, and none for a moment at most.
        await pods.let_go(world.cluster, target)
    await pods.attach(world.cluster, move.namespace, move.pod, move.uid)
    for target in found:
        await _end(world, target)
    where = f"pod {move.namespace}/{move.pod}"
    if not await _is_there(world, move):
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


async def undone(
    attempt: Callable[[], Awaitable[str]], error: GritError, status: Status
) -> GritError:
    """The *error* that the move has failed with, and what has become of the source by then, as the
    *attempt* says: a `roll_back`.

    While a node does not answer, the source's or the target's, or the API server refuses what the
    manager does, the source is held: that is waited for, and said.
    """

    async def tell(other: GritError) -> None:
        log.info("a source is held still", reason=one_line(other), move=status.name)
        with suppress(UnavailableError):
            await status.warn("SourceIsHeld", f"{one_line(error)}{_HELD}{one_line(other)}")

    # Who goes on after this manager must not take it for a move that goes well.
    why = reason(error)
    await status.note(reason=why, message=f"{one_line(error)}{_HELD}it is given back")
    try:
        became = await patience.until_mended(attempt, tell)
    except GritError as other:
        became = f"and the source does not run on: {one_line(other)}"
    return type(error)(f"{one_line(error)}; {became}") if became else error


def cause(now: Object) -> GritError | None:
    """The error that an object with the status *now* has failed with, if `undone` has begun."""
    error, held, _ = str(now.get("message", "")).partition(_HELD)
    return of_reason(now.get("reason", ""))(error) if held else None


async def _is_there(world: World, move: Move) -> bool:
    """Whether the source is: it may not have been deleted yet."""
    return await pods.living(world.cluster, move.namespace, move.pod, move.uid) is not None


async def _end(world: World, target: Object) -> None:
    """Have the target end, and wait until it has: the source must not run beside it.

    UnavailableError if kubelet has not said so in time.
    """
    meta, namespace = target["metadata"], target["metadata"]["namespace"]
    name, uid = meta["name"], meta["uid"]
    await world.cluster.delete(kube.PODS, namespace, name, uid, grace_s=moves.GRACE_S)
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


async def _bring_back(world: World, move: Move) -> str:
    """Have the source be made anew, on its node, from the checkpoint."""
    name = f"{move.name}-back"
    restore = await moves.make_restore(world, move, name, {targets.NODE: move.source_node})
    await _withdraw(world, move)  # after that: the owner may make a pod at any time
    for target in await moves.targets_of(world, move):
        await pods.let_go(world.cluster, target)
        await _end(world, target)
    if pods.owner(move.source) is None and not await moves.has_target(world, move, name):
        await world.cluster.create(kube.PODS, await moves.asked(world, move, restore))
    try:
        back = await moves.placed_and_restored(world, move, None, name)
    except GritError as error:
        log.warning("a source does not come back", pod=move.pod, reason=one_line(error))
        return (
            f"pod {move.namespace}/{move.pod} is not back: {one_line(error)}; its state is in "
            f"Checkpoint {move.checkpoint}"
        )
    return f"pod {move.namespace}/{back['targetPod']} goes on, on node {move.source_node}"
