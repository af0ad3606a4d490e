"""A Migration, from its creation to its end: a pod goes on elsewhere, or runs on where it is."""

from __future__ import annotations

import asyncio
from functools import partial

from grit_runtime import log
from grit_runtime.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    GritError,
    NotFoundError,
    NotRestoredError,
    of_reason,
    one_line,
)
from grit_runtime.manager import api, downtime, fields, moves, patience, pods, rollbacks
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.status import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.api import Migration
    from grit_runtime.manager.cluster import Object
    from grit_runtime.manager.moves import Move
    from grit_runtime.manager.world import World

ENDED = (api.SUCCEEDED, api.FAILED)
_RECORDS_S = 5.0  # for both nodes to tell theirs
_FORGET_S = 120.0  # after which a Migration goes, whatever its nodes say


async def run(world: World, namespace: str, name: str) -> Object:
    """Bring the Migration to its end, from where it is: its status then."""
    found = await world.cluster.find(kube.MIGRATIONS, namespace, name)
    if found is None:
        return {}
    status = Status(world.cluster, kube.MIGRATIONS, found)
    if status.phase in ENDED:  # whoever has called knew an older one
        return {}
    try:
        migration = api.read(api.Migration, found)
        # The manager before this one may have ended just then.
        if not await _is_verified(world, found, status):
            await _verified_in_time(world, migration, found, status)
    except GritError as error:
        if not await _is_verified(world, found, status):
            await _undo(world, found, status, error)
            return status.now
    # What fails from here on is tried again: the target has taken the source's place.
    now = status.now
    await moves.commit(world, namespace, now["sourcePod"], now["sourcePodUID"], status)
    await status.finish(api.SUCCEEDED, downtimeSeconds=await _downtime(world, namespace, now))
    return status.now


async def _is_verified(world: World, found: Object, status: Status) -> bool:
    """Whether the target is verified, of which may not have been heard; it is noted."""
    if status.phase not in (api.PLACING, api.RESTORING):
        return status.phase == api.VERIFIED
    await status.confirm()
    try:
        move = await _known_move(world, api.read(api.Migration, found), status)
        now = await moves.verified(world, move)
    except NotFoundError:  # of the Checkpoint and of the source: what is said of that is `_undo`'s
        return False
    if now:
        await _note_verified(status, now)
    return bool(now)


async def _verified_in_time(
    world: World, migration: Migration, found: Object, status: Status
) -> None:
    limit_s = patience.left_s(migration.spec.timeout_seconds, found)
    try:
        async with asyncio.timeout(limit_s):
            await _advance(world, migration, status)
    except TimeoutError:
        raise DeadlineExceededError(
            f"not verified within {migration.spec.timeout_seconds} s (timeoutSeconds), in phase "
            f"{status.phase}"
        ) from None


async def _advance(world: World, migration: Migration, status: Status) -> None:
    if not status.phase:
        await status.enter(api.PENDING)
    if status.phase == api.PENDING:
        await _look(world, migration, status)
    if status.phase == api.CHECKPOINTING:
        await _checkpointed(world, migration, status)
    if status.phase == api.ROLLING_BACK:
        message = status.now.get("message", "")
        raise rollbacks.cause(status.now) or NotRestoredError(message)
    move = await _move(world, migration, status)
    if status.phase == api.PLACING:
        await moves.place(world, move)
        await status.enter(api.RESTORING)
    if status.phase == api.RESTORING:
        now = await moves.placed_and_restored(world, move, migration.spec.timeout_seconds)
        await _note_verified(status, now)


async def _note_verified(status: Status, now: Object) -> None:
    """Say that the target is verified, by its Restore's status: nothing is taken back then."""
    await status.enter(
        api.VERIFIED,
        targetNode=now["nodeName"],
        targetPod=now["targetPod"],
        targetPodUID=now["targetPodUID"],
    )


async def _look(world: World, migration: Migration, status: Status) -> None:
    """Refuse what cannot be moved before the pod is touched."""
    spec, meta = migration.spec, migration.metadata
    pod = await pods.source(
        world.cluster, meta.namespace, spec.pod_name, spec.selector, spec.source_pod_uid
    )
    moves.refuse(pod)
    node = pod["spec"]["nodeName"]
    if spec.node_name == node:
        raise FailedPreconditionError(
            f"pod {meta.namespace}/{pod['metadata']['name']} is on node {node} already"
        )
    await world.agents.at(node)
    if spec.node_name:
        await world.agents.at(spec.node_name)
    await status.enter(
        api.CHECKPOINTING,
        sourceNode=node,
        sourcePod=pod["metadata"]["name"],
        sourcePodUID=pod["metadata"]["uid"],
        checkpointName=meta.name,
    )


async def _checkpointed(world: World, migration: Migration, status: Status) -> None:
    """Make the Checkpoint that carries the pod, and wait until it is sealed."""
    meta = migration.metadata
    there = await world.cluster.find(kube.CHECKPOINTS, meta.namespace, meta.name)
    if there is None:
        spec: dict[str, Any] = {
            "podName": status.now["sourcePod"],
            "sourcePodUID": status.now["sourcePodUID"],
            "after": "frozen",
        }
        if migration.spec.storage:
            spec["storage"] = fields.plain(migration.spec.storage)
        own = {
            "name": meta.name,
            "namespace": meta.namespace,
            "ownerReferences": [api.reference("Migration", meta)],
        }
        await world.cluster.create(kube.CHECKPOINTS, api.made("Checkpoint", own, spec))
    elif meta.uid not in {one["uid"] for one in there["metadata"].get("ownerReferences") or ()}:
        raise AlreadyExistsError(
            f"Checkpoint {meta.namespace}/{meta.name} is none of this Migration's: give it another "
            "name"
        )
    async for found in world.cluster.followed(kube.CHECKPOINTS, meta.namespace, meta.name):
        if meta.name not in found:
            raise NotFoundError(f"Checkpoint {meta.namespace}/{meta.name} was deleted")
        now: Object = found[meta.name].get("status") or {}
        if now.get("phase") == api.FAILED:
            raise of_reason(now["reason"])(now["message"])
        if now.get("phase") == api.CHECKPOINTED:
            await status.enter(
                api.PLACING, size=now.get("size", ""), manifestDigest=now["manifestDigest"]
            )
            return


async def _move(world: World, migration: Migration, status: Status) -> Move:
    meta = migration.metadata
    found = await world.cluster.get(kube.CHECKPOINTS, meta.namespace, status.now["checkpointName"])
    now = found["status"]
    source = moves.source_of(now, meta.namespace)
    return _move_of(migration, source, now["nodeName"], now["manifestDigest"])


def _move_of(migration: Migration, source: Object, source_node: str, digest: str) -> Move:
    meta = migration.metadata
    return moves.Move(
        namespace=meta.namespace,
        name=meta.name,
        checkpoint=meta.name,
        digest=digest,
        source=source,
        source_node=source_node,
        target_node=migration.spec.node_name,
        leaves=True,
        parent=api.reference("Migration", meta),
        timeout_s=migration.spec.timeout_seconds,
    )


async def _undo(world: World, found: Object, status: Status, error: GritError) -> None:
    """Have the source go on, and say so with what has failed."""
    if status.phase not in api.HOLDING:
        if status.phase == api.CHECKPOINTING:
            await _end_checkpoint(world, found)
        await status.fail(error)
        return
    if status.phase != api.ROLLING_BACK:
        await status.enter(api.ROLLING_BACK, one_line(error))
    attempt = partial(_roll_back, world, api.read(api.Migration, found), status)
    await status.fail(await rollbacks.undone(attempt, error, status))


async def _roll_back(world: World, migration: Migration, status: Status) -> str:
    """Have the source go on: what has become of it, in words."""
    return await rollbacks.roll_back(world, await _known_move(world, migration, status))


async def _known_move(world: World, migration: Migration, status: Status) -> Move:
    """As `_move`; if the Checkpoint was deleted, by the source, which may be there still."""
    try:
        return await _move(world, migration, status)
    except NotFoundError:
        now, namespace = status.now, migration.metadata.namespace
        source = await world.cluster.get(kube.PODS, namespace, now["sourcePod"])
        if source["metadata"]["uid"] != now["sourcePodUID"]:
            raise
        return _move_of(migration, source, now["sourceNode"], now.get("manifestDigest", ""))


async def _end_checkpoint(world: World, found: Object) -> None:
    """Have a Checkpoint that goes on without its Migration end: its pod would be held for nobody.

    One that has failed itself stays, and says why.
    """
    meta = found["metadata"]
    there = await world.cluster.find(kube.CHECKPOINTS, meta["namespace"], meta["name"])
    if there is None or (there.get("status") or {}).get("phase") == api.FAILED:
        return
    own = there["metadata"]
    if meta["uid"] in {one["uid"] for one in own.get("ownerReferences") or ()}:
        await world.cluster.delete(kube.CHECKPOINTS, meta["namespace"], meta["name"], own["uid"])


async def _downtime(world: World, namespace: str, now: Object) -> float | None:
    """How long the pod stood still; None if that cannot be learnt."""
    found = await world.cluster.find(kube.CHECKPOINTS, namespace, now["checkpointName"])
    digest = ((found or {}).get("status") or {}).get("manifestDigest", "")
    try:
        async with asyncio.timeout(_RECORDS_S):
            source, target = [
                await (await world.agents.at(now[node])).records(now[uid])
                for node, uid in (("sourceNode", "sourcePodUID"), ("targetNode", "targetPodUID"))
            ]
    except (TimeoutError, GritError) as error:
        log.info("a downtime is not known", pod=now["sourcePod"], reason=error)
        return None
    return downtime.seconds(source, target, digest.removeprefix("sha256:"))


async def forget(world: World, namespace: str, name: str, uid: str) -> None:
    """What the end of a Migration takes with it: a source that is held runs on, unless the target
    has been verified."""
    found = await world.cluster.find(kube.MIGRATIONS, namespace, name)
    if found is None or found["metadata"]["uid"] != uid:
        return
    now = found.get("status") or {}
    if now.get("phase") == api.VERIFIED:
        await moves.end_source(world, namespace, now["sourcePod"], now["sourcePodUID"])
    if now.get("phase") in api.HOLDING:
        status = Status(world.cluster, kube.MIGRATIONS, found)
        try:
            migration = api.read(api.Migration, found)
            async with asyncio.timeout(_FORGET_S):
                await patience.repeated(lambda: _roll_back(world, migration, status))
        except (GritError, TimeoutError) as error:
            # Its pods may be gone with their namespace: a deletion always works.
            log.warning("a source may be held still", migration=name, reason=error)
