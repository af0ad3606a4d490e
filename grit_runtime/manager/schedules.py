"""A CheckpointSchedule, while there is one: checkpoints when they are due, or asked for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from grit_runtime.errors import (
    AlreadyExistsError,
    GritError,
    InvalidArgumentError,
    NotFoundError,
    one_line,
    reason,
)
from grit_runtime.manager import api, fields, patience, pods, retention, timetable
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.status import Status
from grit_runtime.model import schedule
from grit_runtime.model.selectors import selects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.api import CheckpointSchedule
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.timetable import After
    from grit_runtime.manager.world import World

ASKED = "manager.grit.dev/checkpoint"  # an annotation of a pod, which goes when one is taken

_SLEEP_S = 60.0  # the clock may be set meanwhile
_ENDED = (api.CHECKPOINTED, api.FAILED)


async def run(world: World, namespace: str, name: str) -> None:
    """Keep the schedule, beginning anew with each of its generations, until it is deleted."""
    cluster = world.cluster
    while found := await cluster.find(kube.SCHEDULES, namespace, name):
        if "deletionTimestamp" in found["metadata"]:
            return
        await patience.together(_changed(cluster, found), _keep(cluster, found))


async def _changed(cluster: Cluster, known: Object) -> None:
    meta = known["metadata"]
    name = meta["name"]
    async for found in cluster.followed(kube.SCHEDULES, meta["namespace"], name):
        if name not in found or found[name]["metadata"]["generation"] != meta["generation"]:
            return


async def _keep(cluster: Cluster, found: Object) -> None:
    status = Status(cluster, kube.SCHEDULES, found)
    try:
        planned = api.read(api.CheckpointSchedule, found)
        after = timetable.after(planned.spec)
    except InvalidArgumentError as error:
        await status.settle(reason(error), one_line(error), is_ready=False)
        await patience.forever()  # it is begun anew when it is changed
    await patience.together(
        _by_clock(cluster, planned, after, status),
        _by_annotation(cluster, planned, status),
        _tell(cluster, planned, status),
    )


async def _by_clock(
    cluster: Cluster, planned: CheckpointSchedule, after: After | None, status: Status
) -> None:
    if after is None:
        await status.note(nextTime="")
        await patience.forever()
    since = datetime.fromisoformat(planned.metadata.creation_timestamp).timestamp()
    last = _seconds(planned.status.last_time)
    while True:
        due = schedule.next_time(after, since, last, _now())
        await status.note(nextTime=_text(due))
        while (left_s := due - _now()) > 0:
            await asyncio.sleep(min(left_s, _SLEEP_S))
        last = _now()
        await take(cluster, planned, status)
        # After it: a manager that is killed in between takes one more, and none is lost.
        await status.note(lastTime=_text(last))


async def take(cluster: Cluster, planned: CheckpointSchedule, status: Status) -> None:
    """Have each pod of the schedule be checkpointed, but for those of which it is being done."""
    namespace = planned.metadata.namespace
    found = [
        pod
        for pod in await cluster.every(kube.PODS, namespace)
        if means(planned, pod) and pods.is_running(pod)
    ]
    if not found:
        await _fail(status, NotFoundError(f"no running pod of namespace {namespace} is selected"))
    labels = f"{retention.SCHEDULE}={planned.metadata.uid}"
    under_way = {
        (one.get("status") or {}).get("podUID") or one["spec"].get("sourcePodUID")
        for one in await cluster.every(kube.CHECKPOINTS, namespace, labels=labels)
        if (one.get("status") or {}).get("phase") not in _ENDED
    }
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for pod in found:
        if pod["metadata"]["uid"] not in under_way:
            await ask(cluster, planned, pod, moment, status)


async def ask(
    cluster: Cluster, planned: CheckpointSchedule, pod: Object, why: str, status: Status
) -> None:
    """Make a Checkpoint of the schedule; one of that pod and *why* is made once."""
    try:
        pods.refuse(pod)
        await cluster.create(kube.CHECKPOINTS, made(planned, pod, why))
    except AlreadyExistsError:
        pass
    except GritError as error:
        await _fail(status, error)


def made(planned: CheckpointSchedule, pod: Object, why: str) -> Object:
    """A Checkpoint of the schedule. The schedule does not own it: what is kept outlasts it."""
    meta, spec = planned.metadata, planned.spec
    wanted: dict[str, Any] = {
        "podName": pod["metadata"]["name"],
        "sourcePodUID": pod["metadata"]["uid"],
        "retention": {"keep": spec.keep},
    }
    if spec.storage:
        wanted["storage"] = fields.plain(spec.storage)
    parts = (pod["metadata"]["name"][:120], meta.name[:80], why)
    own = {
        "name": "-".join(part.rstrip("-.") for part in parts),
        "namespace": meta.namespace,
        "labels": {retention.SCHEDULE: meta.uid},
    }
    return api.made("Checkpoint", own, wanted)


def means(planned: CheckpointSchedule, pod: Object) -> bool:
    """Whether the pod is one of the schedule's."""
    spec, meta = planned.spec, pod["metadata"]
    if spec.selector is None:
        return bool(meta["name"] == spec.pod_name)
    return selects(spec.selector, meta.get("labels") or {})


async def _by_annotation(cluster: Cluster, planned: CheckpointSchedule, status: Status) -> None:
    """Take one of each pod that asks for it by an annotation, and take the annotation away."""
    if "Annotation" not in planned.spec.triggers:
        await patience.forever()
    namespace = planned.metadata.namespace
    async for found in cluster.watched(kube.PODS, namespace):
        for pod in [*found.values()]:
            meta = pod["metadata"]
            asked = (meta.get("annotations") or {}).get(ASKED)
            if asked is None or not means(planned, pod) or not pods.is_running(pod):
                continue
            await ask(cluster, planned, pod, f"asked-{meta['resourceVersion']}", status)
            patch = {"metadata": {"uid": meta["uid"], "annotations": {ASKED: None}}}
            found[meta["name"]] = await cluster.patch(kube.PODS, namespace, meta["name"], patch)


async def _tell(cluster: Cluster, planned: CheckpointSchedule, status: Status) -> None:
    """Say how the newest of the schedule's checkpoints have ended."""
    meta = planned.metadata
    label = retention.SCHEDULE
    async for found in cluster.followed(kube.CHECKPOINTS, meta.namespace, meta.uid, label=label):
        ended = sorted(
            (
                (now["completionTime"], name, now)
                for name, one in found.items()
                if (now := one.get("status") or {}).get("phase") in _ENDED
            ),
            key=lambda one: one[:2],
        )
        sealed = [name for _, name, now in ended if now["phase"] == api.CHECKPOINTED]
        if sealed:
            await status.note(lastCheckpoint=sealed[-1])
        if ended:
            _, name, now = ended[-1]
            failed = now["phase"] == api.FAILED
            why = now["reason"] if failed else "CheckpointSealed"
            message = f"Checkpoint {name}: {now.get('message', '')}" if failed else ""
            await status.settle(why, message, is_ready=not failed)


async def _fail(status: Status, error: GritError) -> None:
    await status.settle(reason(error), one_line(error), is_ready=False)


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _seconds(text: str) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
