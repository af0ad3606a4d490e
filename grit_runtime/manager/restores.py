"""A Restore, from its creation to its end: a pod goes on from a checkpoint, and is verified."""

from __future__ import annotations

import asyncio
import json
import time

from grit_runtime import log
from grit_runtime.errors import (
    ArrivalFailedError,
    FailedPreconditionError,
    GritError,
    NotArrivedError,
    NotFoundError,
    NotRestoredError,
    PodDiffersError,
    SecondLifeError,
    UnavailableError,
    of_reason,
    one_line,
)
from grit_runtime.manager import (
    api,
    carriers,
    claims,
    delays,
    gates,
    moves,
    patience,
    pods,
    storage,
    targets,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.status import Status
from grit_runtime.model import pod_template
from grit_runtime.model.selectors import selects
from grit_runtime.proto import agent_pb2
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from typing import Any

    from grit_runtime.manager.agents import Agent
    from grit_runtime.manager.api import Restore
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.storage import Store
    from grit_runtime.manager.world import World

ENDED = (api.RESTORED, api.FAILED)
# A pod that was selected and does not come was never made: another admission has refused it.
# The API server takes no longer for a request (kubernetes staging/src/k8s.io/apiserver
# pkg/endpoints/handlers, requestTimeoutUpperBound: 34 s).
UNUSED_S = 40.0
_LOOK_S, _LOOK_SELDOM_S = 2.0, 30.0

_SEALED_PHASES = (api.CHECKPOINTED, api.SUBMITTING, api.SUBMITTED)
# After these kubelet tries again: what is on its way may come, a pod that runs may be ending.
_PASSING = (
    NotArrivedError,
    ArrivalFailedError,
    NotFoundError,
    SecondLifeError,
    UnavailableError,
)


class Source(NamedTuple):
    """A Checkpoint as a restore needs it."""

    name: str
    sha256: str
    node: str
    store: Store
    containers: tuple[str, ...]
    size_bytes: int
    digest: str  # of what its pods have in common
    template: Object  # the pod that it was taken of


async def run(world: World, namespace: str, name: str) -> Object:
    """Bring the Restore to its end, from where it is: its status then."""
    found = await world.cluster.find(kube.RESTORES, namespace, name)
    if found is None:
        return {}
    status = Status(world.cluster, kube.RESTORES, found)
    if status.phase in ENDED:  # whoever has called knew an older one
        return {}
    try:
        restore = api.read(api.Restore, found)
        limit_s = patience.left_s(restore.spec.timeout_seconds, found)
        async with asyncio.timeout(limit_s):
            await _advance(world, restore, status)
    except TimeoutError:
        what = status.now.get("message") or f"it is {status.phase}"
        error = NotRestoredError(f"not restored in time (timeoutSeconds): {what}")
        await _fail(world, found, status, error)
    except GritError as error:
        await _fail(world, found, status, error)
    return status.now


async def _fail(world: World, found: Object, status: Status, error: GritError) -> None:
    meta = found["metadata"]
    await carriers.closed(world.cluster, meta["namespace"], meta["uid"])
    await status.fail(error)


async def _advance(world: World, restore: Restore, status: Status) -> None:
    if not status.phase:
        await status.enter(api.CREATED)
    checkpoint = await sealed(world.cluster, restore.metadata.namespace, restore.spec)
    source = await _source(world.cluster, checkpoint)
    pod = await _selected(world.cluster, restore, source, status)
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    if status.phase == api.CREATED:
        await status.enter(api.PENDING, targetPod=name, targetPodUID=uid)
    node = await _scheduled(world.cluster, pod)
    if status.phase == api.PENDING:
        await status.enter(api.RESTORING, nodeName=node)
    bringing = patience.repeated(lambda: _bring(world, node, restore, source, status))
    await _while_alive(world.cluster, pod, bringing)
    verifying = patience.repeated(lambda: _verified(world, node, restore, source, uid))
    if restore.metadata.parent and restore.spec.timeout_seconds is None:
        # What it is to take the place of stands still meanwhile.
        verifying = delays.limited(world.cluster, pod, verifying, source.size_bytes)
    await _while_alive(world.cluster, pod, verifying)
    await status.finish(api.RESTORED)


async def sealed(cluster: Cluster, namespace: str, spec: api.RestoreSpec) -> Object:
    """The Checkpoint of a Restore. NotFoundError or FailedPreconditionError if it is no use."""
    found = await cluster.find(kube.CHECKPOINTS, namespace, spec.checkpoint_name)
    where = f"Checkpoint {namespace}/{spec.checkpoint_name}"
    if found is None:
        raise NotFoundError(f"{where} does not exist")
    now = found.get("status") or {}
    # One that was moved and could not be is sealed all the same.
    if now.get("phase") not in _SEALED_PHASES and not now.get("manifestDigest"):
        raise FailedPreconditionError(
            f"{where} is {now.get('phase') or 'new'}, expected one of {', '.join(_SEALED_PHASES)}"
        )
    return found


async def _source(cluster: Cluster, found: Object) -> Source:
    checkpoint = api.read(api.Checkpoint, found)
    now = checkpoint.status
    return Source(
        name=checkpoint.metadata.name,
        sha256=now.manifest_digest.removeprefix("sha256:"),
        node=now.node_name,
        store=await storage.store_of(
            cluster, checkpoint.metadata.namespace, checkpoint.spec.stored
        ),
        containers=now.containers,
        size_bytes=now.size_bytes or 0,
        digest=now.pod_spec_hash,
        template=now.pod_template,
    )


async def _selected(cluster: Cluster, restore: Restore, source: Source, status: Status) -> Object:
    """The pod that the webhook has selected, once there is one."""
    meta = restore.metadata
    known_uid = status.now.get("targetPodUID", "")
    label = targets.label(meta.name)
    followed = cluster.followed(kube.PODS, meta.namespace, label, label=targets.LABEL)
    helping = asyncio.create_task(_help(cluster, restore, source, status))
    try:
        async for found in followed:
            for pod in found.values():
                if known_uid in ("", pod["metadata"]["uid"]) and _is_asking(pod, source):
                    return pod
            if known_uid:
                raise NotRestoredError(
                    f"pod {status.now['targetPod']} was deleted before it was restored"
                )
    finally:
        helping.cancel()
    raise AssertionError  # a watch has no end


def _is_asking(pod: Object, source: Source) -> bool:
    """Whether the pod asks for this very checkpoint: an earlier Restore may have had the name."""
    annotations = pod["metadata"].get("annotations") or {}
    return annotations.get(pods.MANIFEST_DIGEST) == f"sha256:{source.sha256}"


async def _help(cluster: Cluster, restore: Restore, source: Source, status: Status) -> None:
    """Mend what keeps a pod from being selected: one that never came, one that nobody asked of."""
    meta = restore.metadata
    claim, claimed_s = None, 0.0
    pause_s = _LOOK_S
    while True:
        await asyncio.sleep(pause_s)
        try:
            now = await cluster.get(kube.RESTORES, meta.namespace, meta.name)
            before, claim = claim, claims.since(now)
            if claim is None:
                pause_s = min(pause_s * 1.2, _LOOK_SELDOM_S)
                for pod in await _missed(cluster, restore):
                    await _mend(cluster, restore, source, status, pod)
                continue
            pause_s = _LOOK_S
            if claim != before:
                claimed_s = time.monotonic()
            elif time.monotonic() - claimed_s > UNUSED_S:
                await claims.give_up(cluster, meta.namespace, meta.name)
        except GritError as error:  # as long as the Restore waits, its pods are looked at
            log.info("pods of a Restore are looked at later", reason=one_line(error))


async def _mend(
    cluster: Cluster, restore: Restore, source: Source, status: Status, pod: Object
) -> None:
    """Say why a pod that is meant was not selected; a migration's goes, and another comes."""
    meta, name = restore.metadata, pod["metadata"]["name"]
    if pod_template.digest(pod) != source.digest:
        differs = "; ".join(pod_template.differences(pod, source.template)[:3])
        await status.warn(PodDiffersError.reason, f"pod {name} cannot go on from it: {differs}")
        return
    message = f"pod {name} was made while the webhook did not answer"
    if await _is_of_move(cluster, restore):  # its source is held, and no other may run
        message += ", and is deleted: its owner makes another"
        await pods.let_go(cluster, pod)
        await cluster.delete(kube.PODS, meta.namespace, name, pod["metadata"]["uid"], grace_s=0)
    else:
        message += ", and starts from its image; delete it to have another one restored"
    await status.warn("WebhookMissed", message)


async def _is_of_move(cluster: Cluster, restore: Restore) -> bool:
    """Whether it goes with a move that is there: whoever makes a Restore can write that it does."""
    meta, parent = restore.metadata, restore.metadata.parent
    if parent is None or parent.name != restore.spec.checkpoint_name:
        return False
    kind = {"Checkpoint": kube.CHECKPOINTS, "Migration": kube.MIGRATIONS}.get(parent.kind)
    found = await cluster.find(kind, meta.namespace, parent.name) if kind else None
    if found is None or found["metadata"]["uid"] != parent.uid:
        return False
    return parent.kind == "Migration" or bool(found["spec"].get("autoMigration"))


async def _missed(cluster: Cluster, restore: Restore) -> list[Object]:
    """Pods that are meant, made since, and not asking for the checkpoint."""
    meta = restore.metadata
    known = meta.annotations.get(moves.KNOWN)
    return [
        pod
        for pod in await cluster.every(kube.PODS, meta.namespace)
        if means(restore.spec, pod)
        and not (targets.is_asking(pod) or pods.is_ending(pod) or gates.is_waiting(pod))
        and (
            pod["metadata"]["creationTimestamp"] >= meta.creation_timestamp
            if known is None
            else pod["metadata"]["uid"] not in known.split(",")
        )
    ]


def means(spec: api.RestoreSpec, pod: Object) -> bool:
    """Whether the pod is one to go on by it: of the owner, and with the labels, that it names."""
    owner = spec.owner
    if owner is not None and (pods.owner(pod) or {}).get("uid") != owner.uid:
        return False
    if spec.selector is None:
        return owner is not None
    return selects(spec.selector, pod["metadata"].get("labels") or {})


async def _scheduled(cluster: Cluster, pod: Object) -> str:
    """The node that the pod is put on, once it is."""
    async for now in _alive(cluster, pod):
        if node := now["spec"].get("nodeName"):
            return str(node)
    raise AssertionError  # a watch has no end


async def _bring(world: World, node: str, restore: Restore, source: Source, status: Status) -> None:
    """Have the checkpoint on the pod's node: it is there, or comes from a store or its node."""
    namespace = restore.metadata.namespace
    agent = await world.agents.at(node)
    if await _is_on(agent, namespace, source):
        return
    store = await carriers.opened(world, restore, source.store, agent.node, status)
    request = agent_pb2.PrepareRequest(
        namespace=namespace, name=source.name, sha256=source.sha256, source=store
    )
    if not store:
        other = await world.agents.at(source.node)
        request.source, request.host = f"peer://{source.node}", other.address
    job = await agent.ask("Prepare", request, agent_pb2.Job)
    async for _ in agent.followed(job):
        pass
    if source.store.volume:
        await carriers.closed(world.cluster, namespace, restore.metadata.uid)


async def _is_on(agent: Agent, namespace: str, source: Source) -> bool:
    reference = agent_pb2.CheckpointRef(namespace=namespace, name=source.name)
    try:
        found = await agent.ask("Describe", reference, agent_pb2.Description)
    except NotFoundError:
        return False
    return bool(found.sha256 == source.sha256)


async def _verified(world: World, node: str, restore: Restore, source: Source, uid: str) -> None:
    """Wait until the node says that every container of the pod was restored and verified.

    NotRestoredError if one was started cold; its own error if it could not be restored.
    """
    agent = await world.agents.at(node)
    request = agent_pb2.RecordsRequest(pod_uid=uid, follow=True)
    async for reply in agent.stream("Records", request, agent_pb2.RecordsReply):
        newest = {one["container"]: one for one in json.loads(reply.records) if one["container"]}
        for record in newest.values():
            _refuse(record, restore, source)
        restored = {name for name, one in newest.items() if _is_restored(one, source)}
        if restored >= set(source.containers):
            return
    raise UnavailableError(f"node {node} tells no more of pod {uid}; look at its agent")


def _is_restored(record: dict[str, Any], source: Source) -> bool:
    outcome, sha256 = record["outcome"], record["manifest_sha256"]
    return outcome in ("restored", "skipped") and sha256 == source.sha256


def _refuse(record: dict[str, Any], restore: Restore, source: Source) -> None:
    where = f"container {record['container']} of pod {record['pod']}"
    # What had ended before the checkpoint runs again, as init containers do.
    if record["outcome"] == "cold" and record["container"] in source.containers:
        if restore.spec.on_failure != "coldStart":
            raise NotRestoredError(f"{where} was started from its image: {record['reason']}")
        raise NotRestoredError(f"{where} was started cold, as onFailure says: {record['reason']}")
    kind = of_reason(record["error"])
    if record["outcome"] == "failed" and not issubclass(kind, _PASSING):
        raise kind(f"{where} is not restored: {record['reason']}")


async def _while_alive(cluster: Cluster, pod: Object, work: Coroutine[Any, Any, None]) -> None:
    """Do *work*; NotRestoredError if the pod goes meanwhile."""
    await patience.unless(work, _gone(cluster, pod))


async def _gone(cluster: Cluster, pod: Object) -> None:
    async for now in _alive(cluster, pod):
        told = now.get("status") or {}
        if told.get("phase") == "Failed":
            message = told.get("message") or told.get("reason") or "no reason"
            raise NotRestoredError(
                f"pod {now['metadata']['name']} has failed before it was restored: {message}"
            )


async def _alive(cluster: Cluster, pod: Object) -> AsyncIterator[Object]:
    """The pod, which was selected, whenever it has changed. NotRestoredError once it goes."""
    meta = pod["metadata"]
    name, restore = meta["name"], meta["labels"][targets.LABEL]
    async for found in cluster.followed(kube.PODS, meta["namespace"], restore, label=targets.LABEL):
        now = found.get(name)
        if now is None or now["metadata"]["uid"] != meta["uid"] or pods.is_ending(now):
            raise NotRestoredError(f"pod {name} was deleted before it was restored")
        yield now
