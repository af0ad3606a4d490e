"""A pod that mounts a claim on a node, so that the node's agent reaches a volume of any kind.

It does nothing itself. It belongs to the Checkpoint or the Restore that it is for, and is deleted
when the data has been carried, or goes with that object.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from grit_runtime.errors import AlreadyExistsError, FailedPreconditionError
from grit_runtime.manager import api, events, pods, storage
from grit_runtime.manager import cluster as kube

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.api import Checkpoint, Metadata, Restore
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.status import Status
    from grit_runtime.manager.storage import Store
    from grit_runtime.manager.world import World

LABEL, CARRIER = "app.kubernetes.io/name", "grit-carrier"

# A volume that is attached to a node that is lost is not attached elsewhere for 6 minutes
# (kubernetes pkg/controller/volume/attachdetach, maxWaitForUnmountDuration).
_START_S = 480.0
_TELL_EVERY_S = 5.0
_GRACE_S = 1
_USER = 65532  # it writes nothing, so it is nobody


async def opened(
    world: World, carried: Checkpoint | Restore, store: Store, node: str, status: Status
) -> str:
    """The store's URL for the agent of *node*, once it reaches it.

    FailedPreconditionError if the volume is not mounted there in time, with kubelet's reason.
    """
    if not store.volume:
        return store.url
    image = (await world.agents.at(node)).image
    telling = asyncio.create_task(_tell(world.cluster, carried.metadata, status))
    try:
        async with asyncio.timeout(_START_S):
            uid = await _started(world.cluster, _pod(carried, store, node, image))
    except TimeoutError:
        why = await events.newest_warning(
            world.cluster, carried.metadata.namespace, _name(carried.metadata.uid)
        )
        raise FailedPreconditionError(
            f"claim {store.claim} was not mounted on node {node} within {_START_S:g} s: {why}"
        ) from None
    finally:
        telling.cancel()
    return f"volume://{uid}/{store.volume}"


async def store_of(world: World, checkpoint: Checkpoint, node: str, status: Status) -> str:
    """Where the Checkpoint is put to, as the agent of *node* reaches it; as `opened`."""
    namespace = checkpoint.metadata.namespace
    found = await storage.store_of(world.cluster, namespace, checkpoint.spec.stored)
    return await opened(world, checkpoint, found, node, status)


async def closed(cluster: Cluster, namespace: str, uid: str) -> None:
    """Delete the carrier for the object of that uid, if there is one."""
    await cluster.delete(kube.PODS, namespace, _name(uid), grace_s=_GRACE_S)


def is_carrier(pod: Object) -> bool:
    return (pod["metadata"].get("labels") or {}).get(LABEL) == CARRIER


def _name(uid: str) -> str:
    return f"{CARRIER}-{uid}"


def _pod(carried: Checkpoint | Restore, store: Store, node: str, image: str) -> Object:
    """As Pod Security's level restricted and quotas of the namespace want a pod."""
    meta = carried.metadata
    container = {
        "name": "carrier",
        "image": image,  # the agent's, which the node has
        "command": ["tail", "-f", "/dev/null"],
        "resources": {
            "requests": {"cpu": "1m", "memory": "8Mi"},
            "limits": {"cpu": "100m", "memory": "32Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "store", "mountPath": "/store", "readOnly": True}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": _name(meta.uid),
            "namespace": meta.namespace,
            "labels": {LABEL: CARRIER},
            "ownerReferences": [api.reference(type(carried).__name__, meta)],
        },
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _GRACE_S,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "store", "persistentVolumeClaim": {"claimName": store.claim}},
            ],
        },
    }


async def _started(cluster: Cluster, made: Object) -> str:
    """The uid of such a pod, once it runs; one that is just going is waited for."""
    meta = made["metadata"]
    only = f"metadata.name={meta['name']}"
    async for found in cluster.watched(kube.PODS, meta["namespace"], fields=only):
        pod = found.get(meta["name"])
        if pod is None:
            with suppress(AlreadyExistsError):
                await cluster.create(kube.PODS, made)
        elif pods.is_running(pod):
            return str(pod["metadata"]["uid"])
        elif pod["status"].get("phase") == "Failed":
            why = pod["status"].get("message") or pod["status"].get("reason") or "no reason"
            raise FailedPreconditionError(f"pod {meta['name']}, which mounts the claim: {why}")
    raise AssertionError  # a watch has no end


async def _tell(cluster: Cluster, carried: Metadata, status: Status) -> None:
    while True:
        await asyncio.sleep(_TELL_EVERY_S)
        if why := await events.newest_warning(cluster, carried.namespace, _name(carried.uid)):
            await status.warn("ClaimNotMounted", why)
