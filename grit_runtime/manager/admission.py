"""What is said to objects before they exist: which pod goes on from a checkpoint, what is refused.

Each function gets an AdmissionReview's request (admission.k8s.io/v1) and returns its answer. What
they know they ask the API server: a cache would be behind when a pod is deleted and made anew.
"""

from __future__ import annotations

from typing import Any

from grit_runtime.errors import (
    BusyError,
    ConflictError,
    GritError,
    InvalidArgumentError,
    NoNodeError,
    NotFoundError,
    PermissionDeniedError,
    PodDiffersError,
    one_line,
)
from grit_runtime.manager import (
    api,
    evictions,
    gates,
    interruptions,
    lost_nodes,
    moves,
    pods,
    responder,
    restores,
    rules,
    storage,
    targets,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.model import pod_template
from grit_runtime.model.selectors import selects
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable

    from grit_runtime.manager.api import Checkpoint, Migration, Restore
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.nodes import Nodes
    from grit_runtime.manager.pod_fields import PodFields

_WAITING = (None, api.CREATED)
_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (api.Checkpoint, api.Restore, api.Migration, api.CheckpointSchedule)
}


class Answer(NamedTuple):
    """Allowed, unless an error says why not."""

    patch: tuple[dict[str, Any], ...] = ()  # JSON patch
    warnings: tuple[str, ...] = ()  # kubectl shows them
    error: GritError | None = None
    code: int = 422  # of the error, in HTTP


class Admission:
    """The decisions; *checkpoint_root* is that of the nodes."""

    def __init__(
        self, cluster: Cluster, nodes: Nodes, pod_fields: PodFields, checkpoint_root: str
    ) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._pod_fields = pod_fields
        self._checkpoint_root = checkpoint_root

    async def pod(self, request: Object) -> Answer:
        """A new pod: whether it is to go on from a checkpoint, and who responds to evictions."""
        pod = request["object"]
        if pod["spec"].get("runtimeClassName") != pods.RUNTIME_CLASS:
            return Answer()
        try:
            answer = await self._restored(request)
        except NoNodeError as error:
            if not self._pod_fields.has_gates or pod["spec"].get("nodeName"):
                raise  # it would start without its state; its owner tries again
            answer = Answer(tuple(gates.held(pod, one_line(error))))
        if self._pod_fields.has_responders:
            return answer._replace(patch=(*answer.patch, *responder.patch(pod)))
        return answer

    async def waiting_pod(self, request: Object) -> tuple[dict[str, Any], ...]:
        """What a pod that waits is made of, now that it can go on. NoNodeError if it cannot."""
        return (await self._restored(request)).patch

    async def _restored(self, request: Object) -> Answer:
        """Whether the pod is to go on from a checkpoint, and where it can."""
        pod = request["object"]
        if pods.CHECKPOINT in (pod["metadata"].get("annotations") or {}):
            return Answer()  # somebody has decided already
        namespace = request["namespace"]
        is_dry = bool(request.get("dryRun"))
        warnings: list[str] = []
        there = await self._cluster.every(kube.RESTORES, namespace)
        for restore in _waiting(there, pod):
            try:
                checkpoint = await self._checkpoint(namespace, restore, pod)
                patch = self._patch(pod, restore, checkpoint)
                if not is_dry:
                    await self._claim(restore)
            except ConflictError:
                continue  # another pod was quicker
            except NoNodeError:
                raise
            except GritError as error:
                warnings.append(f"not restored by Restore {restore.metadata.name}: {error}")
                continue
            return Answer(patch, tuple(warnings))
        taken = {one["spec"].get("checkpointName") for one in there}
        return await self._of_deleted_source(namespace, pod, taken, is_dry=is_dry)

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

    async def _claim(self, restore: Restore) -> None:
        """Take the Restore for one pod. ConflictError if another has it."""
        meta = restore.metadata
        while targets.SELECTED not in meta.annotations:
            patch = {
                "metadata": {
                    "resourceVersion": meta.resource_version,
                    "annotations": {targets.SELECTED: "true"},
                }
            }
            try:
                await self._cluster.patch(kube.RESTORES, meta.namespace, meta.name, patch)
            except ConflictError:  # the manager has written to it, or another pod was quicker
                now = await self._cluster.get(kube.RESTORES, meta.namespace, meta.name)
                meta = api.read(api.Restore, now).metadata
            else:
                return
        raise ConflictError(f"Restore {meta.namespace}/{meta.name} is another pod's")

    async def _of_deleted_source(
        self, namespace: str, pod: Object, taken: set[str | None], *, is_dry: bool
    ) -> Answer:
        """The pod that an owner makes in place of a deleted one goes on from its checkpoint.

        So it is with upstream: a Checkpoint is enough, and nobody has to make a Restore. Those that
        are *taken* have one.
        """
        owner = pods.owner(pod)
        if owner is None:
            return Answer()
        labels = f"{pods.OWNER}={owner['uid']}"
        there = await self._cluster.every(kube.CHECKPOINTS, namespace, labels=labels)
        newest = await self._newest(_finished(there, pod_template.digest(pod), taken))
        if newest is None:
            return Answer()
        restore = api.Restore(
            api.Metadata(name=newest.metadata.name, namespace=namespace),
            api.RestoreSpec(newest.metadata.name, owner_ref=None),
        )
        patch = self._patch(pod, restore, newest)
        if not is_dry:
            name, annotations = restore.metadata.name, {targets.SELECTED: "true"}
            meta = {"name": name, "namespace": namespace, "annotations": annotations}
            spec = {"checkpointName": newest.metadata.name, "ownerRef": owner}
            await self._cluster.create(kube.RESTORES, api.made("Restore", meta, spec))
        return Answer(patch)

    async def _newest(self, checkpoints: list[Checkpoint]) -> Checkpoint | None:
        """The first, newest, that a pod could go on from: its source is gone."""
        for checkpoint in checkpoints:
            now, namespace = checkpoint.status, checkpoint.metadata.namespace
            if await self._is_gone(namespace, now.pod_name, now.pod_uid) and (
                await self._is_reached(checkpoint)
            ):
                return checkpoint
        return None

    async def _is_gone(self, namespace: str, name: str, uid: str) -> bool:
        pod = await self._cluster.find(kube.PODS, namespace, name)
        return pod is None or pod["metadata"]["uid"] != uid or pods.is_ending(pod)

    async def _is_reached(self, checkpoint: Checkpoint) -> bool:
        """Whether a pod could go on from it now: a node that is lost may run its pod still.

        NoNodeError if the pod is to go on, as soon as that is sure: until then it is not made.
        """
        now = checkpoint.status
        node = await self._cluster.find(kube.NODES, "", now.node_name)
        if node is not None and not lost_nodes.is_lost(node):
            return True
        if node is None or lost_nodes.is_fenced(node):
            return checkpoint.spec.stored is not None
        names = {"name": now.pod_name, "namespace": checkpoint.metadata.namespace}
        pod = {"metadata": {**now.pod_template["metadata"], **names}}
        if await lost_nodes.asks(self._cluster, pod):
            raise NoNodeError(
                f"node {now.node_name} is lost, and may run pod {now.pod_name} still: it goes on "
                f"elsewhere once the node is fenced ({lost_nodes.FENCED}=true)"
            )
        return False

    def _patch(
        self, pod: Object, restore: Restore, checkpoint: Checkpoint
    ) -> tuple[dict[str, Any], ...]:
        """What makes the pod one that is restored, on a node that can."""
        asking = targets.asking(pod, restore, checkpoint, self._nodes, self._checkpoint_root)
        return (
            {"op": "add", "path": "/metadata/annotations", "value": asking.annotations},
            {"op": "add", "path": "/metadata/labels", "value": asking.labels},
            {"op": "add", "path": "/spec/affinity", "value": asking.affinity},
        )

    async def object(self, request: Object) -> Answer:
        """An object of kaito.sh that is made or changed."""
        kind = _KINDS[request["kind"]["kind"]]
        made: Any = api.read(kind, request["object"])
        old = request.get("oldObject")
        before: Any = api.read(kind, old) if old else None
        where = f"{kind.__name__} {request['namespace']}/{made.metadata.name}"
        for message in rules.refusals(made.spec, before.spec if before else None):
            raise InvalidArgumentError(f"{where}: {message}")
        if old is None:
            match made:
                case api.Checkpoint():
                    await self._new_checkpoint(request, made)
                case api.Restore():
                    await self._new_restore(request, made)
                case api.Migration():
                    await self._new_migration(request, made)
                case _:
                    pass
        return Answer()

    async def _new_checkpoint(self, request: Object, made: Checkpoint) -> None:
        """Refuse it if its pod could not be checkpointed now."""
        spec, namespace = made.spec, request["namespace"]
        pod = await pods.source(
            self._cluster, namespace, spec.pod_name, spec.selector, spec.source_pod_uid
        )
        if spec.auto_migration:
            await self._may_move(request, made.metadata.name)
            moves.refuse(pod)
        await storage.store_of(self._cluster, namespace, spec.stored)

    async def _new_restore(self, request: Object, made: Restore) -> None:
        """Refuse it if its Checkpoint is of no use, or not for whoever makes it."""
        await self._may(request, "restore", f"checkpoints.{api.GROUP}", made.spec.checkpoint_name)
        await restores.sealed(self._cluster, request["namespace"], made.spec)

    async def _new_migration(self, request: Object, made: Migration) -> None:
        """Refuse it if its pod could not be moved now, or not by whoever makes it."""
        spec, namespace = made.spec, request["namespace"]
        await self._may(request, "create", f"checkpoints.{api.GROUP}", made.metadata.name)
        await self._may_move(request, made.metadata.name)
        pod = await pods.source(
            self._cluster, namespace, spec.pod_name, spec.selector, spec.source_pod_uid
        )
        moves.refuse(pod)
        await storage.store_of(self._cluster, namespace, spec.storage)

    async def _may_move(self, request: Object, checkpoint: str) -> None:
        """PermissionDeniedError for a user who could not do by himself what the manager will do."""
        await self._may(request, "restore", f"checkpoints.{api.GROUP}", checkpoint)
        for verb in ("create", "delete"):
            await self._may(request, verb, "pods", "")

    async def eviction(self, request: Object) -> Answer:
        """An eviction of a pod: it is moved instead, if it can be."""
        try:
            return Answer(warnings=await evictions.review(self._cluster, request))
        except NotFoundError as error:
            return Answer(error=error, code=404)
        except GritError as error:  # whatever it is: better that it is asked again than a lost pod
            return Answer(error=BusyError(one_line(error)), code=429)

    async def deletion(self, request: Object) -> Answer:
        """A deletion of a pod: one that is preempted waits for its last checkpoint."""
        return await _unless_busy(interruptions.review_deletion(self._cluster, request))

    async def job(self, request: Object) -> Answer:
        """A change of a Job: its suspension waits for the last checkpoints of its pods."""
        return await _unless_busy(interruptions.review_job(self._cluster, request))

    async def _may(self, request: Object, verb: str, what: str, name: str) -> None:
        """PermissionDeniedError if whoever made the request may not do that too."""
        user = request["userInfo"]
        resource, _, group = what.partition(".")
        attributes = {
            "namespace": request["namespace"],
            "verb": verb,
            "group": group,
            "resource": resource,
            "name": name,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": user.get("username", ""),
                "uid": user.get("uid", ""),
                "groups": user.get("groups") or [],
                "extra": user.get("extra") or {},
                "resourceAttributes": attributes,
            },
        }
        reviewed = await self._cluster.create(kube.REVIEWS, review)
        if not reviewed["status"].get("allowed"):
            raise PermissionDeniedError(
                f"user {user.get('username')!r} may not {verb} {what} in namespace "
                f"{request['namespace']}; a Role has to allow it"
            )


async def _unless_busy(review: Awaitable[None]) -> Answer:
    try:
        await review
    except BusyError as error:
        return Answer(error=error, code=429)
    return Answer()


def _waiting(there: list[Object], pod: Object) -> list[Restore]:
    """The Restores that the pod may be meant by, oldest first."""
    owner = pods.owner(pod) or {}
    labels = pod["metadata"].get("labels") or {}
    found = []
    for one in there:
        if (one.get("status") or {}).get("phase") not in _WAITING:
            continue  # as most are; reading costs more than all else
        restore = api.read(api.Restore, one)
        if targets.SELECTED in restore.metadata.annotations:
            continue
        spec = restore.spec
        is_owners = spec.owner is not None and spec.owner.uid == owner.get("uid")
        if is_owners or (spec.selector is not None and selects(spec.selector, labels)):
            found.append(restore)
    return sorted(found, key=lambda one: one.metadata.creation_timestamp)


def _finished(there: list[Object], digest: str, taken: set[str | None]) -> list[Checkpoint]:
    """Those of pods like the one with that digest which have no Restore yet, newest first."""
    found = []
    for one in there:
        now = one.get("status") or {}
        is_alike = (now.get("phase"), now.get("podSpecHash")) == (api.CHECKPOINTED, digest)
        if is_alike and one["metadata"]["name"] not in taken:
            checkpoint = api.read(api.Checkpoint, one)
            if not checkpoint.is_part:
                found.append(checkpoint)
    return sorted(found, key=lambda one: one.status.completion_time, reverse=True)


def refusal(error: GritError) -> Answer:
    """The answer that refuses."""
    return Answer(error=type(error)(one_line(error)))
