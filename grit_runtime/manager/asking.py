"""What a person asks of the cluster: objects that are made, and followed to their end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from grit_runtime.errors import (
    FailedPreconditionError,
    GritError,
    NotFoundError,
    of_reason,
    one_line,
)
from grit_runtime.manager import api, checkpoints, migrations, moves, pods, restores, targets
from grit_runtime.manager import cluster as kube
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.manager.cluster import Cluster, Object

    Told = Callable[[str], None]

# A Checkpoint has come to its good end there, unless it moves its pod itself.
_ENDS = {
    "Checkpoint": (api.CHECKPOINTED, *checkpoints.ENDED),
    "Restore": restores.ENDED,
    "Migration": migrations.ENDED,
}
_RESTORE_TIMEOUT_S = 600
_AT_ONCE = 10  # migrations of a drained node


class Leaving(NamedTuple):
    """What becomes of the pods of a node that is drained."""

    movable: tuple[Object, ...]
    left: tuple[tuple[str, str], ...]  # NAMESPACE/POD, and why it is not moved


def generated(pod: str, what: str) -> str:
    """A name for an object about *pod*."""
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{pod[:200]}-{what}-{moment}"


def storage(claim: str, url: str) -> dict[str, str] | None:
    """The field of that name."""
    if claim and url:
        raise FailedPreconditionError("expected a claim or a store, not both")
    return {"claimName": claim} if claim else {"url": url} if url else None


async def ask(
    cluster: Cluster, kind: str, namespace: str, name: str, spec: Object, told: Told
) -> Object:
    """Make an object and follow it: its status at the end. The error that it has failed with."""
    made = {
        "apiVersion": api.API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {key: value for key, value in spec.items() if value not in (None, "", ())},
    }
    await cluster.create(kube.OF_KIND[kind], made)
    return await ended(cluster, kind, namespace, name, told)


async def ended(cluster: Cluster, kind: str, namespace: str, name: str, told: Told) -> Object:
    """The status of an object once it has come to its end; *told* hears of each step."""
    last = ""
    fields = f"metadata.name={name}"
    async for found in cluster.watched(kube.OF_KIND[kind], namespace, fields=fields):
        if name not in found:
            raise NotFoundError(f"{kind} {namespace}/{name} was deleted")
        now: Object = found[name].get("status") or {}
        phase, message = now.get("phase", ""), now.get("message", "")
        line = f"{phase}: {message}" if message else phase
        if line != last and phase:
            told(line)
            last = line
        if phase == api.FAILED:
            raise of_reason(now.get("reason", ""))(message)
        if phase in _ENDS[kind]:
            return now
    raise AssertionError  # a watch has no end


async def restore(
    cluster: Cluster, namespace: str, checkpoint: str, pod_name: str, told: Told
) -> Object:
    """Make a pod that goes on from a Checkpoint: the Restore's status at its end."""
    name = generated(checkpoint, "restore")
    found = await cluster.get(kube.CHECKPOINTS, namespace, checkpoint)
    now = found.get("status") or {}
    if not now.get("manifestDigest"):
        raise FailedPreconditionError(
            f"Checkpoint {namespace}/{checkpoint} is {now.get('phase') or 'new'}, expected sealed"
        )
    spec = {
        "checkpointName": checkpoint,
        "selector": {"matchLabels": {targets.LABEL: targets.value(name)}},
        "timeoutSeconds": _RESTORE_TIMEOUT_S,
    }
    meta = {"name": name, "namespace": namespace}
    made = {"apiVersion": api.API_VERSION, "kind": "Restore", "metadata": meta, "spec": spec}
    await cluster.create(kube.RESTORES, made)
    pod = pods.replacement(moves.source_of(now, namespace), pod_name)
    pod["metadata"]["labels"][targets.LABEL] = targets.value(name)
    try:
        await cluster.create(kube.PODS, pod)
    except GritError:
        await cluster.delete(kube.RESTORES, namespace, name)
        raise
    return await ended(cluster, "Restore", namespace, name, told)


async def leaving(cluster: Cluster, node: str) -> Leaving:
    """What would become of the pods of *node*."""
    movable, left = [], []
    for pod in await cluster.every(kube.PODS, fields=f"spec.nodeName={node}"):
        meta = pod["metadata"]
        where = f"{meta['namespace']}/{meta['name']}"
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or pods.is_ending(pod):
            continue
        try:
            pods.refuse(pod)
            moves.refuse(pod)
        except GritError as error:
            left.append((where, one_line(error)))
        else:
            movable.append(pod)
    return Leaving(tuple(movable), tuple(left))


async def drain(
    cluster: Cluster, node: str, wanted: Leaving, told: Callable[[str, str], None]
) -> list[tuple[str, str]]:
    """Cordon *node* and move its pods, some at a time: those that did not go, and why."""
    await cluster.patch(kube.NODES, "", node, {"spec": {"unschedulable": True}})
    slots = asyncio.Semaphore(_AT_ONCE)
    failed = []

    async def move(pod: Object) -> None:
        meta = pod["metadata"]
        where = f"{meta['namespace']}/{meta['name']}"
        spec = {"podName": meta["name"], "sourcePodUID": meta["uid"]}
        name = generated(meta["name"], "drain")
        async with slots:
            try:
                await ask(
                    cluster,
                    "Migration",
                    meta["namespace"],
                    name,
                    spec,
                    lambda line: told(where, line),
                )
            except GritError as error:
                failed.append((where, one_line(error)))

    await asyncio.gather(*(move(pod) for pod in wanted.movable))
    return failed
