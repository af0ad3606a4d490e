"""An eviction of a pod that can move makes it move: it is refused until the pod has gone.

So `kubectl drain` and all that evict by the API have pods moved, as they try again after 429
(TooManyRequests), which they know from disruption budgets.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from datetime import UTC, datetime

from grit_runtime.errors import (
    AlreadyExistsError,
    BusyError,
    GritError,
    NotFoundError,
    one_line,
)
from grit_runtime.manager import (
    api,
    carriers,
    last_checkpoints,
    migrations,
    moves,
    patience,
    pods,
    restores,
    targets,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.reading import readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.api import Migration
    from grit_runtime.manager.cluster import Cluster, Object

ON_EVICTION, LET_GO = "manager.grit.dev/on-eviction", "let-go"  # an annotation of a pod

TIMEOUT_S = 1800  # of such a Migration
_LETS_GO_S = 600.0  # after a failure: whoever asks later has begun anew, and it is tried again
_ANSWER_S = 4.0  # the webhook's timeout is longer, and would let the pod go
_GONE_S = 60.0  # whoever tries again means the pod that it has begun with


async def review(cluster: Cluster, request: Object) -> tuple[str, ...]:
    """What whoever evicts is told, if the pod may go.

    BusyError while it is moved or checkpointed, or what refuses that may pass; NotFoundError if it
    has gone, and another has its name.
    """
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await _reviewed(cluster, request)
    except TimeoutError:
        where = f"pod {request['namespace']}/{request['name']}"
        raise BusyError(f"{where} is looked at, and the API server is slow: try again") from None


async def _reviewed(cluster: Cluster, request: Object) -> tuple[str, ...]:
    pod = await cluster.find(kube.PODS, request["namespace"], request["name"])
    if pod is not None and carriers.is_carrier(pod):
        raise BusyError(f"{pods.where(pod)} mounts a claim for a checkpoint under way: try again")
    if pod is None or not _is_meant(pod):
        return ()
    why = await _refusal(cluster, pod)
    deletion = (request.get("object") or {}).get("deleteOptions") or {}
    if request.get("dryRun") or deletion.get("dryRun"):
        return (f"{pods.where(pod)} would be moved first",) if why is None else ()
    if why is None:
        why = await _unmovable(cluster, pod)
    untaken = await last_checkpoints.require(cluster, request["namespace"], [pod], "PodEviction")
    return (*((f"{pods.where(pod)} goes: {why}",) if why else ()), *untaken)


async def _unmovable(cluster: Cluster, pod: Object) -> str:
    """Have the pod move, a BusyError; or why it cannot: else a node could never be drained."""
    try:
        name = await move(cluster, pod, TIMEOUT_S)
    except GritError as error:
        if not patience.lasts(error):
            raise BusyError(
                f"{pods.where(pod)} could not be moved just now: {one_line(error)}: try again"
            ) from None
        why = f"it could not be moved: {one_line(error)}"
    else:
        raise _moving(pod, name)
    meta = pod["metadata"]
    now = await cluster.find(kube.PODS, meta["namespace"], meta["name"])
    if now is None or now["metadata"]["uid"] != meta["uid"]:
        raise NotFoundError(f"{pods.where(pod)} has gone: the one of that name is another")
    return why


async def move(cluster: Cluster, pod: Object, timeout_s: int) -> str:
    """Have the pod move: the name of the Migration, which may be under way."""
    meta = pod["metadata"]
    tried = await _tried(cluster, pod)
    if tried and tried[-1].status.phase != api.FAILED:
        return tried[-1].metadata.name
    name = _name(pod, len(tried) + 1)
    spec = {"podName": meta["name"], "sourcePodUID": meta["uid"], "timeoutSeconds": timeout_s}
    made = api.made("Migration", {"name": name, "namespace": meta["namespace"]}, spec)
    with suppress(AlreadyExistsError):  # it was evicted twice at once
        await cluster.create(kube.MIGRATIONS, made)
    return name


def stays(pod: Object) -> bool:
    """Whether the pod says that it is not to move when it is evicted."""
    return (pod["metadata"].get("annotations") or {}).get(ON_EVICTION) == LET_GO


def _name(pod: Object, attempt: int) -> str:
    meta = pod["metadata"]
    name = f"{meta['name'][:200].rstrip('-.')}-evicted-{meta['uid'][:8]}"
    return name if attempt == 1 else f"{name}-{attempt}"


async def _tried(cluster: Cluster, pod: Object) -> list[Migration]:
    """The Migrations that evictions have made of the pod, the newest last."""
    found = {
        migration.metadata.name: migration
        for migration in await _migrations(cluster, pod)
        if migration.spec.source_pod_uid == pod["metadata"]["uid"]
    }
    names = (_name(pod, attempt) for attempt in itertools.count(1))
    return [found[name] for name in itertools.takewhile(found.__contains__, names)]


def _is_meant(pod: Object) -> bool:
    """Whether it is a pod of grit's that runs, or arrives."""
    return (
        pod["spec"].get("runtimeClassName") == pods.RUNTIME_CLASS
        and not pods.is_ending(pod)
        and pod["status"].get("phase") not in ("Succeeded", "Failed")
    )


async def _refusal(cluster: Cluster, pod: Object) -> str | None:
    """Why the pod goes and is not moved, "" if that is as it should be; None if it is moved.

    BusyError if it is already; NotFoundError if it has come in place of the one that was.
    """
    if stays(pod):
        return ""
    try:
        moves.refuse(pod)
    except GritError as error:
        return one_line(error)
    for migration in await _migrations(cluster, pod):
        _wait_for(migration, pod)
    await _wait_for_restore(cluster, pod)
    for migration in (await _tried(cluster, pod))[-1:]:
        now = migration.status
        if now.phase == api.FAILED and _age_s(now.completion_time) < _LETS_GO_S:
            return f"Migration {migration.metadata.name} has failed: {now.message}"
    if not pods.is_running(pod) or await last_checkpoints.is_held(cluster, pod):
        return ""
    return None


async def _migrations(cluster: Cluster, pod: Object) -> list[Migration]:
    found = await cluster.every(kube.MIGRATIONS, pod["metadata"]["namespace"])
    return readable(api.Migration, found)


async def _wait_for_restore(cluster: Cluster, pod: Object) -> None:
    """BusyError while the pod is restored, for ten minutes: its state would be used up by it."""
    meta = pod["metadata"]
    label = (meta.get("labels") or {}).get(targets.LABEL)
    if label is None or _age_s(meta["creationTimestamp"]) > _LETS_GO_S:
        return
    for restore in await cluster.every(kube.RESTORES, meta["namespace"]):
        name, now = restore["metadata"]["name"], restore.get("status") or {}
        if (
            targets.label(name) == label
            and now.get("phase") not in restores.ENDED
            and now.get("targetPodUID", meta["uid"]) == meta["uid"]
        ):
            raise BusyError(f"{pods.where(pod)} is just arriving by Restore {name}: try again")


def _wait_for(migration: Migration, pod: Object) -> None:
    """BusyError if the pod moves by it already; NotFoundError if it has."""
    spec, now, meta = migration.spec, migration.status, pod["metadata"]
    where = pods.where(pod)
    by = f"Migration {migration.metadata.name}"
    uid = now.source_pod_uid or spec.source_pod_uid
    if now.phase not in migrations.ENDED:
        if uid == meta["uid"] or (not uid and spec.pod_name == meta["name"]):
            raise _moving(pod, migration.metadata.name)
        restored_by = (meta.get("labels") or {}).get(targets.LABEL)
        if meta["uid"] == now.target_pod_uid or restored_by == targets.label(
            migration.metadata.name
        ):
            raise BusyError(f"{where} is just arriving by {by}: try again")
    elif (now.target_pod_uid, now.source_pod) == (meta["uid"], meta["name"]) and (
        _age_s(now.completion_time) < _GONE_S
    ):
        raise NotFoundError(
            f"{where} has gone from node {now.source_node} by {by}: the one on node "
            f"{now.target_node} is another"
        )


def _age_s(time: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def _moving(pod: Object, migration: str) -> BusyError:
    return BusyError(f"{pods.where(pod)} is being moved by Migration {migration}: try again")
