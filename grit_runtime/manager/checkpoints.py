"""A Checkpoint, from its creation to its end. Every step can be taken again after a kill."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from functools import partial

from grit_runtime import log
from grit_runtime.errors import (
    DeadlineExceededError,
    GritError,
    NotFoundError,
    UnavailableError,
)
from grit_runtime.manager import (
    api,
    carriers,
    claims,
    held,
    moves,
    patience,
    pods,
    probes,
    removal,
    rollbacks,
    storage,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.status import Status
from grit_runtime.model import pod_template, sizes
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.agents import Agent
    from grit_runtime.manager.api import Checkpoint
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.world import World

ENDED = (api.SUBMITTED, api.FAILED)
_OPEN = ("", api.CREATED, api.PENDING, api.CHECKPOINTING)  # nothing is sealed yet

_TELL_EVERY_S = 2.0
_FORGET_S = 120.0  # after which a Checkpoint goes, whatever its node says


async def run(world: World, namespace: str, name: str) -> Object:
    """Bring the Checkpoint to its end, from where it is: its status then."""
    found = await world.cluster.find(kube.CHECKPOINTS, namespace, name)
    if found is None:
        return {}
    status = Status(world.cluster, kube.CHECKPOINTS, found)
    if status.phase in ENDED:  # whoever has called knew an older one
        return {}
    try:
        checkpoint = api.read(api.Checkpoint, found)
        limit_s = patience.left_s(checkpoint.spec.timeout_seconds, found)
        if error := rollbacks.cause(status.now):  # the manager before this one has begun to undo it
            raise error
        if status.phase in _OPEN:
            await _advance_in_time(world, checkpoint, status, limit_s)
        if not checkpoint.spec.auto_migration:
            return status.now
        limit_s = patience.left_s(checkpoint.spec.timeout_seconds, found)
        await _submit(world, checkpoint, status, limit_s)
    except GritError as error:
        if rollbacks.cause(status.now) or not await _is_verified(world, found, status):
            error = await _undone(world, found, status, error)
            await carriers.closed(world.cluster, namespace, found["metadata"]["uid"])
            await status.fail(error)
            return status.now
    # What fails from here on is tried again: another pod has taken the source's place.
    await moves.commit(world, namespace, status.now["podName"], status.now["podUID"], status)
    await status.finish(api.SUBMITTED)
    return status.now


async def _submit(
    world: World, checkpoint: Checkpoint, status: Status, limit_s: float | None
) -> None:
    """The second half of a Checkpoint with autoMigration, but for the source's deletion."""
    move = moves.of_checkpoint(checkpoint, status.now)
    if status.phase == api.CHECKPOINTED:
        await status.enter(api.SUBMITTING)
    elif await moves.verified(world, move):
        return
    try:
        async with asyncio.timeout(limit_s):
            await moves.place(world, move)
            await moves.placed_and_restored(world, move, limit_s)
    except TimeoutError:
        raise DeadlineExceededError("no pod was restored in time (timeoutSeconds)") from None


async def _is_verified(world: World, found: Object, status: Status) -> bool:
    """Whether another pod has gone on, of which may not have been heard."""
    await status.confirm()
    if status.phase != api.SUBMITTING:
        return False
    move = moves.of_checkpoint(api.read(api.Checkpoint, found), status.now)
    return bool(await moves.verified(world, move))


async def _undone(world: World, found: Object, status: Status, error: GritError) -> GritError:
    """The *error*, once the pod runs on that stands still or may, however long its node is silent.

    One that was not to stand still runs on by itself.
    """
    spec, meta = found["spec"], found["metadata"]
    job = meta["namespace"], meta["name"], status.now
    if spec.get("autoMigration") and status.phase in (api.CHECKPOINTED, api.SUBMITTING):
        move = moves.of_checkpoint(api.read(api.Checkpoint, found), status.now)
        return await rollbacks.undone(partial(rollbacks.roll_back, world, move), error, status)
    if status.phase != api.CHECKPOINTING:
        return error
    if spec.get("after", "running") == "running" and not spec.get("autoMigration"):
        await held.cancel(world, *job)
        return error
    return await rollbacks.undone(partial(held.let_run, world, *job), error, status)


async def _advance_in_time(
    world: World, checkpoint: Checkpoint, status: Status, limit_s: float | None
) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await _advance(world, checkpoint, status)
    except TimeoutError:
        what = f"{status.phase}: {status.now.get('message', '')}".rstrip(": ")
        raise DeadlineExceededError(
            f"not done within {checkpoint.spec.timeout_seconds} s (timeoutSeconds), in phase {what}"
        ) from None


async def _advance(world: World, checkpoint: Checkpoint, status: Status) -> None:
    if not status.phase:
        status.pass_through(api.CREATED)
    if status.phase == api.CREATED:
        await _look(world, checkpoint, status)
    if status.phase == api.PENDING:
        # Before the pod is touched: where it is to go must be there.
        await world.agents.at(status.now["nodeName"])
        await carriers.store_of(world, checkpoint, status.now["nodeName"], status)
        await status.enter(api.CHECKPOINTING)
    if status.phase == api.CHECKPOINTING:
        await patience.repeated(lambda: _take(world, checkpoint, status))


async def _look(world: World, checkpoint: Checkpoint, status: Status) -> None:
    spec, namespace = checkpoint.spec, checkpoint.metadata.namespace
    pod = await pods.source(
        world.cluster, namespace, spec.pod_name, spec.selector, spec.source_pod_uid
    )
    if spec.auto_migration:
        moves.refuse(pod)
    if owner := pods.owner(pod):
        await status.label(**{pods.OWNER: owner["uid"]})
    chosen = {
        "nodeName": pod["spec"]["nodeName"],
        "podName": pod["metadata"]["name"],
        "podUID": pod["metadata"]["uid"],
        "podSpecHash": pod_template.digest(pod),
        "podTemplate": pods.template(pod),
    }
    if spec.stored:  # which may take minutes to be reached
        await status.enter(api.PENDING, **chosen)
    else:
        status.pass_through(api.PENDING, **chosen)


async def _take(world: World, checkpoint: Checkpoint, status: Status) -> None:
    meta, spec = checkpoint.metadata, checkpoint.spec
    agent = await world.agents.at(status.now["nodeName"])
    store = await carriers.store_of(world, checkpoint, agent.node, status)
    if not await _is_taken(agent, meta.uid):
        request = agent_pb2.CheckpointRequest(
            target=f"{meta.namespace}/{status.now['podName']}",
            name=meta.name,
            after="frozen" if spec.auto_migration else spec.after,
            uid=status.now["podUID"],
            capture=spec.capture,
            push=store,
            tcp=spec.tcp or "",
            nccl=spec.gpu.nccl or "" if spec.gpu else "",
            token=meta.uid,
        )
        await _followed(agent, await agent.ask("Checkpoint", request, agent_pb2.Job), status)
    elif store:  # it may be cut short; what is there is not sent again
        push = agent_pb2.PushRequest(namespace=meta.namespace, name=meta.name, target=store)
        await _followed(agent, await agent.ask("Push", push, agent_pb2.Job), status)
    sealed = await _sealed(agent, meta.namespace, meta.name)
    if sealed is None:
        raise UnavailableError(
            f"node {agent.node} has taken checkpoint {meta.namespace}/{meta.name}, and it is not "
            "there; look at the agent's log"
        )
    if store:
        await carriers.closed(world.cluster, meta.namespace, meta.uid)
    end = status.enter if spec.auto_migration else status.finish
    await end(
        api.CHECKPOINTED,
        dataPath=await storage.data_path(world.cluster, meta.namespace, spec.stored, meta.name),
        manifestDigest=f"sha256:{sealed.sha256}",
        sizeBytes=sealed.size_bytes,
        gpuBytes=sealed.gpu_bytes,
        size=sizes.shown(sealed.size_bytes),
        needs=json.loads(sealed.needs),
        containers=list(sealed.containers),
        warnings=[
            *sealed.warnings,
            *probes.impatient(status.now["podTemplate"]["spec"], sealed.phases.get("paused", 0.0)),
        ],
    )


async def _is_taken(agent: Agent, token: str) -> bool:
    """Whether the agent has sealed the checkpoint already: this manager may be a new one."""
    jobs = await agent.ask("Status", agent_pb2.StatusRequest(), agent_pb2.StatusReply)
    own = [job for job in jobs.jobs if job.kind == "checkpoint" and job.token == token]
    return any(job.state == "done" or (job.ended and job.phase == "push") for job in own)


async def _sealed(agent: Agent, namespace: str, name: str) -> agent_pb2.Description | None:
    """What there is on the node; None if there is nothing that is sealed."""
    reference = agent_pb2.CheckpointRef(namespace=namespace, name=name)
    with suppress(NotFoundError):
        found: agent_pb2.Description = await agent.ask("Describe", reference, agent_pb2.Description)
        return found
    return None


async def _followed(agent: Agent, job: agent_pb2.Job, status: Status) -> None:
    """Wait until the job is done, and say how far it is."""
    loop = asyncio.get_running_loop()
    next_s = loop.time() + _TELL_EVERY_S
    async for now in agent.followed(job):
        if loop.time() >= next_s and now.size_bytes:
            next_s = loop.time() + _TELL_EVERY_S
            done = f"{sizes.shown(now.done_bytes)} of {sizes.shown(now.size_bytes)}"
            await status.note(message=f"{now.phase}: {done}")


async def forget(world: World, namespace: str, name: str, uid: str) -> None:
    """What the end of a Checkpoint takes with it: its job, its hold, and its data."""
    found = await world.cluster.find(kube.CHECKPOINTS, namespace, name)
    if found is None or found["metadata"]["uid"] != uid:
        return
    now = found.get("status") or {}
    if not now.get("nodeName"):
        return
    await held.cancel(world, namespace, name, now)
    if found["spec"].get("after") == "frozen" or found["spec"].get("autoMigration"):
        try:
            async with asyncio.timeout(_FORGET_S):
                await patience.repeated(lambda: _give_back(world, found))
        except (GritError, TimeoutError) as error:
            # Its node may be gone for good: a deletion always works.
            log.warning("a pod may be held still", pod=now["podName"], reason=error)
    try:
        await removal.remove(world, api.read(api.Checkpoint, found), found)
    except GritError as error:
        # The node may be gone for good, and then so is the data: a deletion always works.
        log.warning("a checkpoint is left where it is", node=now["nodeName"], reason=error)


async def _give_back(world: World, found: Object) -> None:
    """Have the pod that is held for the Checkpoint run on, unless another has taken its place."""
    meta, now = found["metadata"], found["status"]
    migration = await _migration(world.cluster, found)
    phase = (migration.get("status") or {}).get("phase")
    if phase in (api.VERIFIED, api.SUCCEEDED):  # the Migration deletes it
        return
    if phase in api.HOLDING or now.get("phase") == api.SUBMITTING:
        await rollbacks.roll_back(world, moves.of_checkpoint(api.read(api.Checkpoint, found), now))
    elif life := await _life(world, found):
        if await held.is_there(world.cluster, meta["namespace"], now):
            log.warning("a pod stays held", pod=now["podName"], reason=f"pod {life} has its state")
    else:
        await held.let_run(world, meta["namespace"], meta["name"], now)


async def _life(world: World, found: Object) -> str:
    """The pod that has gone on from the Checkpoint, or is about to; "" without one."""
    meta = found["metadata"]
    for pod in await world.cluster.every(kube.PODS, meta["namespace"]):
        is_source = pod["metadata"]["uid"] == found["status"]["podUID"]
        has_failed = (pod.get("status") or {}).get("phase") == "Failed"  # perhaps unrestored
        if is_source or has_failed or pods.is_ending(pod):
            continue
        if _is_from(pod, world.checkpoint_root, found):
            return str(pod["metadata"]["name"])
    for restore in await world.cluster.every(kube.RESTORES, meta["namespace"]):
        is_of = restore["spec"].get("checkpointName") == meta["name"]
        is_claimed = claims.is_waiting(restore) and claims.since(restore) is not None
        if is_of and is_claimed and claims.is_of(restore, found):
            return f"of Restore {restore['metadata']['name']}"
    return ""


def _is_from(pod: Object, checkpoint_root: str, found: Object) -> bool:
    """Whether the pod is one that goes on from the Checkpoint, whoever has annotated it."""
    meta = found["metadata"]
    digest = pods.came_from(pod)
    if digest is not None:
        return digest == str(found["status"].get("manifestDigest"))
    if pod["metadata"]["creationTimestamp"] < meta["creationTimestamp"]:
        return False  # from an earlier one of its name
    annotations = pod["metadata"].get("annotations") or {}
    named = annotations.get(pods.CHECKPOINT) or annotations.get(pods.RESTORE_NAME)
    return named in (meta["name"], f"{checkpoint_root}/{meta['namespace']}/{meta['name']}")


async def _migration(cluster: Cluster, found: Object) -> Object:
    """The Migration that the Checkpoint is a part of; empty without one."""
    meta = found["metadata"]
    for reference in meta.get("ownerReferences") or ():
        if reference["kind"] == "Migration":
            there = await cluster.find(kube.MIGRATIONS, meta["namespace"], reference["name"])
            if there and there["metadata"]["uid"] == reference["uid"]:
                return there
    return {}
