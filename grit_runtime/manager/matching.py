"""Which checkpoint a new pod goes on from: by a Restore that means it, or as its owner's next.

What is to be known is asked of the API server: a cache would be behind when a pod is deleted and
made anew.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from grit_runtime.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    FailedPreconditionError,
    GritError,
    InvalidArgumentError,
    NoNodeError,
    NotFoundError,
    PodDiffersError,
    one_line,
)
from grit_runtime.manager import api, claims, fencing, lost_nodes, pods, restores, targets
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.reading import readable
from grit_runtime.model import pod_template
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.api import Checkpoint, Restore
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.nodes import Nodes

    Patch = tuple[dict[str, Any], ...]

# For a pod that is just being made; the webhook has 3 s, and pods start cold without its answer.
_COMES_S, _LOOK_S = 1.2, 0.3


class Match(NamedTuple):
    """What the pod is made of: nothing, unless it goes on from a checkpoint."""

    patch: tuple[dict[str, Any], ...] = ()  # JSON patch
    warnings: tuple[str, ...] = ()


class Matching:
    """The decisions; *checkpoint_root* is that of the nodes."""

    def __init__(self, cluster: Cluster, nodes: Nodes, checkpoint_root: str) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._checkpoint_root = checkpoint_root

    async def of(self, request: Object) -> Match:
        """Whether the pod is to go on from a checkpoint, and where it can.

        NoNodeError if no node can take it; BusyError if it is not known yet whether it is to.
        """
        end = time.monotonic() + _COMES_S
        while True:
            try:
                return await self._of(request)
            except BusyError:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(_LOOK_S)

    async def _of(self, request: Object) -> Match:
        pod, namespace = request["object"], request["namespace"]
        if pods.CHECKPOINT in (pod["metadata"].get("annotations") or {}):
            return Match()  # somebody has decided already
        warnings: list[str] = []
        there = await self._cluster.every(kube.RESTORES, namespace)
        quicker = None
        for restore, found in meant(there, pod, warnings):
            if claims.since(found) is not None:
                await self._leave(restore, found, pod)
                continue
            try:
                return Match(await self._by(restore, found, request), tuple(warnings))
            except ConflictError as error:
                quicker = error
            except NoNodeError:
                raise
            except GritError as error:
                warnings.append(f"not restored by Restore {restore.metadata.name}: {error}")
        if quicker is not None:
            raise BusyError(one_line(quicker))
        match = await self._of_deleted_source(request, there)
        return match._replace(warnings=(*warnings, *match.warnings))

    async def _by(self, restore: Restore, found: Object, request: Object) -> Patch:
        """The pod goes on by this Restore. ConflictError if another pod was quicker."""
        pod = request["object"]
        checkpoint = await self._checkpoint(request["namespace"], restore, pod)
        patch = self._patch(pod, restore, checkpoint)
        if not request.get("dryRun"):
            await claims.take(self._cluster, found, checkpoint.status)
        return patch

    async def _leave(self, restore: Restore, found: Object, pod: Object) -> None:
        """BusyError if the Restore means the pod, and is claimed for one that may never come."""
        if await claims.has_come(self._cluster, found):
            return
        namespace, name = found["metadata"]["namespace"], restore.metadata.name
        with suppress(FailedPreconditionError, InvalidArgumentError, NotFoundError):
            await self._checkpoint(namespace, restore, pod)
            raise BusyError(
                f"Restore {namespace}/{name} is for another pod, which is being made; if it has "
                f"not come within {restores.UNUSED_S:g} s, this one can have it"
            )

    async def _checkpoint(self, namespace: str, restore: Restore, pod: Object) -> Checkpoint:
        """The Checkpoint of a Restore. PodDiffersError if the pod is not as the source was."""
        found = await restores.sealed(self._cluster, namespace, restore.spec)
        checkpoint = api.read(api.Checkpoint, found)
        if pod_template.digest(pod) != checkpoint.status.pod_spec_hash:
            source = checkpoint.status.pod_template
            differs = "; ".join(pod_template.differences(pod, source)[:3])
            raise PodDiffersError(
                f"the pod is not as Checkpoint {checkpoint.metadata.name} needs it: {differs}"
            )
        return checkpoint

    async def _of_deleted_source(self, request: Object, known: list[Object]) -> Match:
        """The pod that an owner makes in place of a deleted one goes on from its checkpoint.

        So it is with upstream: a Checkpoint is enough, and nobody has to make a Restore. Those that
        have one among the *known* ones are taken.
        """
        pod, namespace = request["object"], request["namespace"]
        owner = pods.owner(pod)
        if owner is None:
            return Match()
        labels = f"{pods.OWNER}={owner['uid']}"
        there = await self._cluster.every(kube.CHECKPOINTS, namespace, labels=labels)
        warnings: list[str] = []
        finished = untaken(there, pod_template.digest(pod), known, warnings)
        newest = await self._newest(finished, used(there, known))
        if newest is None:
            return Match(warnings=tuple(warnings))
        name = claims.free_name(newest.metadata.name, {one["metadata"]["name"] for one in known})
        restore = api.Restore(
            api.Metadata(name=name, namespace=namespace),
            api.RestoreSpec(newest.metadata.name, owner_ref=None),
        )
        patch = self._patch(pod, restore, newest)
        if not request.get("dryRun"):
            await self._make(restore, owner, newest.status)
        return Match(patch, tuple(warnings))

    async def _make(
        self, restore: Restore, owner: dict[str, Any], checkpoint: api.CheckpointStatus
    ) -> None:
        meta = {
            "name": restore.metadata.name,
            "namespace": restore.metadata.namespace,
            "annotations": claims.noted(checkpoint),
        }
        spec = {"checkpointName": restore.spec.checkpoint_name, "ownerRef": owner}
        try:
            await self._cluster.create(kube.RESTORES, api.made("Restore", meta, spec))
        except AlreadyExistsError as error:  # it may be for another pod from the same checkpoint
            raise BusyError(one_line(error)) from None

    async def _newest(
        self, checkpoints: list[Checkpoint], lives: dict[str, list[Object]]
    ) -> Checkpoint | None:
        """The first, newest, that a pod could go on from: its source is gone, and lives nowhere."""
        there: set[str] = set()  # a pod that lives may have many
        for checkpoint in checkpoints:
            now, namespace = checkpoint.status, checkpoint.metadata.namespace
            if now.pod_uid in there:
                continue
            if await pods.living(self._cluster, namespace, now.pod_name, now.pod_uid):
                there.add(now.pod_uid)
            elif not await self._lives_on(
                namespace, lives.get(now.pod_uid, [])
            ) and await self._is_reached(checkpoint):
                return checkpoint
        return None

    async def _lives_on(self, namespace: str, used: list[Object]) -> bool:
        """Whether a pod goes on by one of these statuses of Restores, or is about to.

        One that failed because an agent was silent may have brought its pod back all the same.
        """
        for now in used:
            phase = now.get("phase")
            if phase not in restores.ENDED:
                return True
            name, uid = now.get("targetPod", ""), now.get("targetPodUID", "")
            pod = await pods.living(self._cluster, namespace, name, uid) if uid else None
            if pod and (phase == api.RESTORED or not _has_ended(pod)):
                return True
        return False

    async def _is_reached(self, checkpoint: Checkpoint) -> bool:
        """Whether a pod could go on from it now: a node that is lost may run its pod still.

        NoNodeError if the pod is to go on, as soon as that is sure: until then it is not made.
        """
        now = checkpoint.status
        node = await self._cluster.find(kube.NODES, "", now.node_name)
        if node is not None and not fencing.is_lost(node):
            return True
        if node is None or fencing.is_fenced(node):
            return checkpoint.spec.stored is not None
        names = {"name": now.pod_name, "namespace": checkpoint.metadata.namespace}
        pod = {"metadata": {**now.pod_template["metadata"], **names}}
        if await lost_nodes.asks(self._cluster, pod):
            raise NoNodeError(
                f"node {now.node_name} is lost, and may run pod {now.pod_name} still: it goes on "
                f"elsewhere once the node is fenced ({fencing.FENCED}=true)"
            )
        return False

    def _patch(self, pod: Object, restore: Restore, checkpoint: Checkpoint) -> Patch:
        """What makes the pod one that is restored, on a node that can."""
        asking = targets.asking(pod, restore, checkpoint, self._nodes, self._checkpoint_root)
        return (
            {"op": "add", "path": "/metadata/annotations", "value": asking.annotations},
            {"op": "add", "path": "/metadata/labels", "value": asking.labels},
            {"op": "add", "path": "/spec/affinity", "value": asking.affinity},
        )


def meant(there: list[Object], pod: Object, warnings: list[str]) -> list[tuple[Restore, Object]]:
    """The Restores that may mean the pod: first those that nobody has claimed, and oldest first."""
    found = []
    for one in there:
        if not claims.is_waiting(one):
            continue  # as most are; reading costs more than all else
        found += [
            (restore, one)
            for restore in readable(api.Restore, [one], warnings)
            if restores.means(restore.spec, pod)
        ]
    return sorted(
        found,
        key=lambda pair: (
            claims.since(pair[1]) is not None,
            pair[0].metadata.creation_timestamp,
        ),
    )


def used(checkpoints: list[Object], known: list[Object]) -> dict[str, list[Object]]:
    """The statuses of Restores, by the uids of the pods that their Checkpoints were taken of."""
    of_name = {one["metadata"]["name"]: one for one in checkpoints}
    found: dict[str, list[Object]] = {}
    for one in known:
        is_taken = claims.since(one) is not None or not claims.is_waiting(one)
        uid = claims.source_uid(one) if is_taken else ""  # its Checkpoint may have gone since
        checkpoint = of_name.get(one["spec"].get("checkpointName"))
        if not uid and checkpoint is not None and claims.is_of(one, checkpoint):
            uid = (checkpoint.get("status") or {}).get("podUID", "")
        found.setdefault(uid, []).append(one.get("status") or {})
    return found


def untaken(
    there: list[Object], digest: str, known: list[Object], warnings: list[str]
) -> list[Checkpoint]:
    """Those of pods like the one with that digest which no known Restore is of, newest first."""
    finished = []
    for one in there:
        now = one.get("status") or {}
        if (now.get("phase"), now.get("podSpecHash")) != (api.CHECKPOINTED, digest):
            continue
        name = one["metadata"]["name"]
        of_name = (other for other in known if other["spec"].get("checkpointName") == name)
        if not any(claims.is_of(other, one) for other in of_name):
            finished.append(one)
    found = [one for one in readable(api.Checkpoint, finished, warnings) if not one.is_part]
    return sorted(found, key=lambda one: one.status.completion_time, reverse=True)


def _has_ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
