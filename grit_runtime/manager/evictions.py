"""An eviction of a pod that can move makes it move: it is refused until the pod has gone.

So `kubectl drain` and all that evict by the API have pods moved, as they try again after 429
(TooManyRequests), which they know from disruption budgets.
"""

from __future__ import annotations

from datetime import UTC, datetime

from grit_runtime.errors import (
    AlreadyExistsError,
    BusyError,
    GritError,
    NotFoundError,
    PermissionDeniedError,
    one_line,
)
from grit_runtime.manager import api, migrations, moves, pods, targets
from grit_runtime.manager import cluster as kube

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.api import Migration
    from grit_runtime.manager.cluster import Cluster, Object

ON_EVICTION, LET_GO = "manager.grit.dev/on-eviction", "let-go"  # an annotation of a pod

TIMEOUT_S = 1800  # of such a Migration
_GONE_S = 60.0  # whoever tries again means the pod that it has begun with


async def review(cluster: Cluster, request: Object) -> tuple[str, ...]:
    """What whoever evicts is told, if the pod may go.

    BusyError while it is moved or checkpointed; NotFoundError if it has gone, and another has its
    name.
    """
    namespace, name = request["namespace"], request["name"]
    pod = await cluster.find(kube.PODS, namespace, name)
    if pod is None or not _is_meant(pod):
        return ()
    try:
        moves.refuse(pod)
    except GritError as error:
        return (one_line(error),)
    own = f"{name[:200].rstrip('-.')}-evicted-{pod['metadata']['uid'][:8]}"
    for body in await cluster.every(kube.MIGRATIONS, namespace):
        migration = api.read(api.Migration, body)
        _wait_for(migration, pod)
        if migration.metadata.name == own and migration.status.phase == api.FAILED:
            why = migration.status.message
            return (f"pod {namespace}/{name} is lost: Migration {own} has failed: {why}",)
    if not pods.is_running(pod) or await _is_held(cluster, pod):
        return ()
    deletion = (request.get("object") or {}).get("deleteOptions") or {}
    if request.get("dryRun") or deletion.get("dryRun"):
        return (f"pod {namespace}/{name} would be moved first",)
    return await _moved(cluster, pod, own)


def _is_meant(pod: Object) -> bool:
    """Whether it is a pod that moves, or that arrives."""
    annotations = pod["metadata"].get("annotations") or {}
    return (
        pod["spec"].get("runtimeClassName") == pods.RUNTIME_CLASS
        and annotations.get(ON_EVICTION) != LET_GO
        and not pods.is_ending(pod)
        and pod["status"].get("phase") not in ("Succeeded", "Failed")
    )


def _wait_for(migration: Migration, pod: Object) -> None:
    """BusyError if the pod moves by it already; NotFoundError if it has."""
    spec, now, meta = migration.spec, migration.status, pod["metadata"]
    where = f"pod {meta['namespace']}/{meta['name']}"
    by = f"Migration {migration.metadata.name}"
    uid = now.source_pod_uid or spec.source_pod_uid
    if now.phase not in migrations.ENDED:
        if uid == meta["uid"] or (not uid and spec.pod_name == meta["name"]):
            raise _moving(pod, migration.metadata.name)
        restored_by = (meta.get("labels") or {}).get(targets.LABEL)
        if meta["uid"] == now.target_pod_uid or restored_by == migration.metadata.name:
            raise BusyError(f"{where} is just arriving by {by}: try again")
    elif (now.target_pod_uid, now.source_pod) == (meta["uid"], meta["name"]):
        ended = datetime.fromisoformat(now.completion_time)
        if (datetime.now(UTC) - ended).total_seconds() < _GONE_S:
            raise NotFoundError(
                f"{where} has gone from node {now.source_node} by {by}: the one on node "
                f"{now.target_node} is another"
            )


async def _is_held(cluster: Cluster, pod: Object) -> bool:
    """Whether it is held for a Checkpoint that is sealed. BusyError while one is taken."""
    meta = pod["metadata"]
    for body in await cluster.every(kube.CHECKPOINTS, meta["namespace"]):
        checkpoint = api.read(api.Checkpoint, body)
        spec, now = checkpoint.spec, checkpoint.status
        uid = now.pod_uid or spec.source_pod_uid
        if uid != meta["uid"] and (uid or spec.pod_name != meta["name"]):
            continue
        if now.phase not in (api.CHECKPOINTED, api.SUBMITTED, api.FAILED) or (
            spec.auto_migration and now.phase == api.CHECKPOINTED
        ):
            raise BusyError(
                f"pod {meta['namespace']}/{meta['name']} is being checkpointed by Checkpoint "
                f"{checkpoint.metadata.name}: try again"
            )
        if spec.after == "frozen" and now.phase == api.CHECKPOINTED:
            return True
    return False


async def _moved(cluster: Cluster, pod: Object, name: str) -> tuple[str, ...]:
    """Have the pod moved: BusyError. Told, if that is not allowed."""
    meta = pod["metadata"]
    made = {
        "apiVersion": api.API_VERSION,
        "kind": "Migration",
        "metadata": {"name": name, "namespace": meta["namespace"]},
        "spec": {
            "podName": meta["name"],
            "sourcePodUID": meta["uid"],
            "timeoutSeconds": TIMEOUT_S,
        },
    }
    try:
        await cluster.create(kube.MIGRATIONS, made)
    except AlreadyExistsError:
        pass  # it was evicted twice at once
    except PermissionDeniedError as error:  # as in a namespace that is being deleted
        where = f"pod {meta['namespace']}/{meta['name']}"
        return (f"{where} is lost: it could not be moved: {one_line(error)}",)
    raise _moving(pod, name)


def _moving(pod: Object, migration: str) -> BusyError:
    meta = pod["metadata"]
    where = f"pod {meta['namespace']}/{meta['name']}"
    return BusyError(f"{where} is being moved by Migration {migration}: try again")
