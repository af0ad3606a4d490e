"""Pods that wait for a node that can have their state: a gate keeps the scheduler from them.

Without one such a pod is refused, and its owner makes it again after longer and longer. What a pod
with gates may become is less than what a new one may (kubernetes pkg/apis/core/validation,
ValidatePodUpdate): the terms of its own nodeAffinity have to stay. Then its owner makes another.
"""

from __future__ import annotations

import asyncio

from grit_runtime import log
from grit_runtime.errors import (
    BusyError,
    ConflictError,
    GritError,
    InvalidArgumentError,
    NoNodeError,
    NotFoundError,
    one_line,
)
from grit_runtime.manager import claims, patience, pods
from grit_runtime.manager import cluster as kube

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Any

    from grit_runtime.manager.cluster import Cluster, Object

    Patch = Sequence[dict[str, Any]]
    Decide = Callable[[Object], Awaitable[Patch]]

FIELD = "schedulingGates"  # of a pod's spec
GATE = {"name": "manager.grit.dev/restore"}
WAITS = "manager.grit.dev/waits"  # a label of such a pod; an annotation: what for

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 30.0


def held(pod: Object, why: str) -> Patch:
    """What makes a new pod wait (JSON patch)."""
    meta, spec = pod["metadata"], pod["spec"]
    others = [one for one in spec.get(FIELD) or () if one != GATE]  # we may be asked once more
    annotations = {**(meta.get("annotations") or {}), WAITS: why}
    labels = {**(meta.get("labels") or {}), WAITS: "true"}
    return (
        {"op": "add", "path": "/metadata/annotations", "value": annotations},
        {"op": "add", "path": "/metadata/labels", "value": labels},
        {"op": "add", "path": f"/spec/{FIELD}", "value": [*others, GATE]},
    )


def opened(pod: Object, patch: Patch) -> Object:
    """The merge patch that lets a pod go on, and makes of it what *patch* makes of a new one."""
    meta = pod["metadata"]
    values = {step["path"]: step["value"] for step in patch}
    spec: Object = {FIELD: [one for one in pod["spec"].get(FIELD) or () if one != GATE]}
    if "/spec/affinity" in values:
        spec["affinity"] = values["/spec/affinity"]
    return {
        "metadata": {
            "resourceVersion": meta["resourceVersion"],
            "annotations": {**values.get("/metadata/annotations", {}), WAITS: None},
            "labels": {**values.get("/metadata/labels", {}), WAITS: None},
        },
        "spec": spec,
    }


async def keep(cluster: Cluster, decide: Decide) -> None:
    """Let each of them go on as soon as *decide*, of an AdmissionReview's request, finds how."""

    async def wait(pod: Object) -> None:
        meta = pod["metadata"]
        await _wait(cluster, decide, meta["namespace"], meta["name"])

    waiting = cluster.watched(kube.PODS, "*", labels=f"{WAITS}=true")
    await patience.for_each(waiting, is_waiting, wait)


def is_waiting(pod: Object) -> bool:
    return GATE in (pod["spec"].get(FIELD) or ()) and not pods.is_ending(pod)


async def _wait(cluster: Cluster, decide: Decide, namespace: str, name: str) -> None:
    pause_s = _FIRST_PAUSE_S
    while True:
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, _LONGEST_PAUSE_S)
        try:
            pod = await cluster.get(kube.PODS, namespace, name)
            if not is_waiting(pod):
                return
            await _look(cluster, decide, pod)
        except NotFoundError:
            return
        except GritError as error:
            log.warning("a pod waits still", pod=f"{namespace}/{name}", reason=one_line(error))


async def _look(cluster: Cluster, decide: Decide, pod: Object) -> None:
    meta = pod["metadata"]
    place = kube.PODS, meta["namespace"], meta["name"]
    try:
        patch = await decide({"object": pod, "namespace": meta["namespace"]})
    except (BusyError, NoNodeError) as error:
        if meta["annotations"].get(WAITS) != (why := one_line(error)):
            await cluster.patch(*place, {"metadata": {"annotations": {WAITS: why}}})
        return
    try:
        await _open(cluster, pod, patch)
    except ConflictError:
        return  # it is looked at again
    except InvalidArgumentError:
        if pods.owner(pod) is None:
            raise
        await pods.let_go(cluster, pod)
        await cluster.delete(*place, meta["uid"], grace_s=0)


async def _open(cluster: Cluster, pod: Object, patch: Patch) -> None:
    """Let the pod go on as *patch* says; if that cannot be, another pod may have its Restore."""
    meta = pod["metadata"]
    change = opened(pod, patch)
    try:
        await cluster.patch(kube.PODS, meta["namespace"], meta["name"], change)
    except GritError:
        if restore := change["metadata"]["annotations"].get(pods.RESTORE_NAME):
            await claims.give_up(cluster, meta["namespace"], restore)
        raise
