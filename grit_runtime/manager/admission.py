"""What is said to objects before they exist: what they are made of, and what is refused.

Each function gets an AdmissionReview's request (admission.k8s.io/v1) and returns its answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grit_runtime.errors import (
    BusyError,
    GritError,
    InvalidArgumentError,
    NoNodeError,
    NotFoundError,
    PermissionDeniedError,
    one_line,
)
from grit_runtime.manager import (
    api,
    evictions,
    gates,
    interruptions,
    matching,
    moves,
    pods,
    responder,
    restores,
    rules,
    storage,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable

    from grit_runtime.manager.api import Checkpoint, Migration, Restore
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.nodes import Nodes
    from grit_runtime.manager.pod_fields import PodFields

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (api.Checkpoint, api.Restore, api.Migration, api.CheckpointSchedule)
}


_ANSWER_S = 1.8  # the webhook of pods has 3 s, of which a manager that begins may wait for 0.8


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
        self._pod_fields = pod_fields
        self._matching = matching.Matching(cluster, nodes, checkpoint_root)

    async def pod(self, request: Object) -> Answer:
        """A new pod: whether it is to go on from a checkpoint, and who responds to evictions."""
        pod = request["object"]
        if pod["spec"].get("runtimeClassName") != pods.RUNTIME_CLASS:
            return Answer()
        try:
            match = await self._matched(request)
        except (BusyError, NoNodeError) as error:
            if not self._pod_fields.has_gates or pod["spec"].get("nodeName"):
                raise  # it would start without its state; its owner tries again
            match = matching.Match(tuple(gates.held(pod, one_line(error))))
        answer = Answer(*match)
        if self._pod_fields.has_responders:
            return answer._replace(patch=(*answer.patch, *responder.patch(pod)))
        return answer

    async def _matched(self, request: Object) -> matching.Match:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._matching.of(request)
        except TimeoutError:
            raise BusyError(
                f"whether the new pod of namespace {request['namespace']} is to go on from a "
                "checkpoint is not known yet, as the API server is slow: try again"
            ) from None

    async def waiting_pod(self, request: Object) -> tuple[dict[str, Any], ...]:
        """What a pod that waits is made of, now that it can go on. NoNodeError or BusyError if it
        cannot yet."""
        return (await self._matching.of(request)).patch

    async def object(self, request: Object) -> Answer:
        """An object of kaito.sh that is made or changed."""
        kind = _KINDS[request["kind"]["kind"]]
        made: Any = api.read(kind, request["object"])
        old = request.get("oldObject")
        before: Any = api.read(kind, old) if old else None
        where = f"{kind.__name__} {request['namespace']}/{made.metadata.name}"
        for message in rules.refusals(made.spec, before.spec if before else None):
            raise InvalidArgumentError(f"{where}: {message}")
        if isinstance(made, api.Restore) and not _parts(made) <= _parts(before):
            await self._may(request, "delete", "pods", "")  # as the manager will
        if old is None:
            if rules.url(made.spec):
                await self._may_name_stores(request)
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

    async def _may_name_stores(self, request: Object) -> None:
        """PermissionDeniedError for a user whom an agent would refuse a store: a directory is
        anywhere on the node, and a bucket is opened with the node's account."""
        what = f"checkpoints.{api.GROUP}"
        if not await self._is_allowed(request, "", "create", what, ""):
            raise PermissionDeniedError(
                f"user {request['userInfo'].get('username')!r} may not create {what} in all "
                "namespaces, as storage.url needs; a ClusterRole has to allow it, or name a claim"
            )

    async def _may(self, request: Object, verb: str, what: str, name: str) -> None:
        """PermissionDeniedError if whoever made the request may not do that too."""
        namespace = request["namespace"]
        if not await self._is_allowed(request, namespace, verb, what, name):
            raise PermissionDeniedError(
                f"user {request['userInfo'].get('username')!r} may not {verb} {what} in namespace "
                f"{namespace}; a Role has to allow it"
            )

    async def _is_allowed(
        self, request: Object, namespace: str, verb: str, what: str, name: str
    ) -> bool:
        """Whether whoever made the request may do that in the namespace, or, of "", in all."""
        user = request["userInfo"]
        resource, _, group = what.partition(".")
        attributes = {
            "namespace": namespace,
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
        return bool(reviewed["status"].get("allowed"))


def _parts(restore: Restore | None) -> frozenset[object]:
    """What makes it one of a move, by which the manager deletes pods that are in the way."""
    if restore is None:
        return frozenset()
    meta = restore.metadata
    return frozenset((meta.parent, meta.annotations.get(moves.KNOWN))) - {None}


async def _unless_busy(review: Awaitable[None]) -> Answer:
    try:
        await review
    except BusyError as error:
        return Answer(error=error, code=429)
    return Answer()


def refusal(error: GritError) -> Answer:
    """The answer that refuses."""
    return Answer(error=type(error)(one_line(error)))
