"""The pods that are checkpointed, and those that go on from checkpoints."""

from __future__ import annotations

import copy
import json
from contextlib import suppress

from grit_runtime.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PodStateError,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.model.selectors import selects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from typing import Any

    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.model.selectors import LabelSelector

RUNTIME_CLASS = "grit"
OWNER = "manager.grit.dev/owner"  # a label of a Checkpoint: the uid of what owns its pod
DETACHED = "manager.grit.dev/detached"  # of a source: the labels that its owner knew it by
RESTORE_NAME = "grit.dev/restore-name"
CHECKPOINT = "grit.dev/checkpoint"
MANIFEST_DIGEST = "grit.dev/manifest-digest"
ON_FAILURE = "grit.dev/on-failure"
TCP = "grit.dev/tcp"

AFFINITY = "manager.grit.dev/affinity"  # of a restored pod: its own, before it was narrowed

# What an owner selects its pods by, and no other owner's. Jobs select by the first of theirs until
# 1.26, and by the second since (pkg/registry/batch/job/strategy.go generateSelector).
_OWNER_LABELS = {
    "ReplicaSet": ("pod-template-hash",),
    "Job": ("controller-uid", "batch.kubernetes.io/controller-uid"),
}
_OWN_ANNOTATIONS = (RESTORE_NAME, CHECKPOINT, MANIFEST_DIGEST, ON_FAILURE, AFFINITY)


async def source(
    cluster: Cluster, namespace: str, name: str, selector: LabelSelector | None, uid: str
) -> Object:
    """The running pod that a spec means. NotFoundError or PodStateError if it means none."""
    if name:
        pod = await cluster.find(kube.PODS, namespace, name)
        if pod is None:
            raise NotFoundError(f"pod {namespace}/{name} does not exist")
    else:
        pod = await _selected(cluster, namespace, selector)
    if uid and pod["metadata"]["uid"] != uid:
        raise PodStateError(
            f"{where(pod)} has uid {pod['metadata']['uid']}, expected {uid}: it is another pod of "
            "that name"
        )
    refuse(pod)
    return pod


async def _selected(cluster: Cluster, namespace: str, selector: LabelSelector | None) -> Object:
    found = [
        pod
        for pod in await cluster.every(kube.PODS, namespace)
        if selector and selects(selector, pod["metadata"].get("labels") or {}) and is_running(pod)
    ]
    if len(found) != 1:
        names = ", ".join(pod["metadata"]["name"] for pod in found[:5]) or "none"
        raise NotFoundError(
            f"the selector selects {len(found)} running pods of namespace {namespace}, expected "
            f"one: {names}"
        )
    return found[0]


def refuse(pod: Object) -> None:
    """PodStateError or FailedPreconditionError for a pod that is not one to be checkpointed now."""
    if not is_running(pod):
        state = "ending" if is_ending(pod) else pod.get("status", {}).get("phase", "new")
        raise PodStateError(f"{where(pod)} is {state}, expected Running")
    runtime_class = pod["spec"].get("runtimeClassName", "")
    if runtime_class != RUNTIME_CLASS:
        raise FailedPreconditionError(
            f"{where(pod)} has runtimeClassName {runtime_class!r}, expected {RUNTIME_CLASS!r}: a "
            "pod like it could be restored under that one only"
        )


def where(pod: Object) -> str:
    return f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"


def is_running(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") == "Running" and not is_ending(pod)


def is_ending(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


async def living(cluster: Cluster, namespace: str, name: str, uid: str) -> Object | None:
    """The very pod with this uid, unless it is gone or ending."""
    pod = await cluster.find(kube.PODS, namespace, name)
    if pod is None or pod["metadata"]["uid"] != uid or is_ending(pod):
        return None
    return pod


def came_from(pod: Object) -> str | None:
    """The digest of the checkpoint that the pod goes on from; None if it has none."""
    annotations: dict[str, str] = pod["metadata"].get("annotations") or {}
    return annotations.get(MANIFEST_DIGEST)


def unscheduled(pod: Object) -> str:
    """Why the scheduler has put the pod on no node; "" if that is not known."""
    conditions = pod.get("status", {}).get("conditions") or ()
    told = {one["type"]: one.get("message", "") for one in conditions if one["status"] == "False"}
    return str(told.get("PodScheduled", ""))


def stuck(pod: Object, reasons: Container[str]) -> str:
    """The container of the pod that waits for one of *reasons*, in words; "" if none does."""
    told = pod.get("status") or {}
    for one in (*(told.get("initContainerStatuses") or ()), *(told.get("containerStatuses") or ())):
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in reasons:
            return f"container {one['name']}: {waiting['reason']}: {waiting.get('message', '')}"
    return ""


def owner(pod: Object) -> dict[str, Any] | None:
    """The reference to the pod's controller."""
    references = pod["metadata"].get("ownerReferences") or ()
    return next((one for one in references if one.get("controller")), None)


def is_of(pod: Object, owner_uid: str) -> bool:
    return (owner(pod) or {}).get("uid") == owner_uid


def template(pod: Object) -> Object:
    """What of a pod is kept with its checkpoint."""
    meta = pod["metadata"]
    kept = ("labels", "annotations", "ownerReferences")
    return {
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": pod["spec"],
    }


def replacement(pod: Object, name: str, node: str = "") -> Object:
    """A pod like a bare one, to be made in its place; on *node*, if one is named."""
    spec = copy.deepcopy(pod["spec"])
    for key in (
        "nodeName",
        "serviceAccount",
        "priority",
        "schedulingGates",
    ):  # the server's own to fill in
        spec.pop(key, None)
    token = "kube-api-access-"  # noqa: S105  the name of a volume that admission adds
    added = {v["name"] for v in spec.get("volumes") or () if v["name"].startswith(token)}
    added |= {v["name"] for v in spec.get("volumes") or () if _is_token(v, spec)}
    spec["volumes"] = [v for v in spec.get("volumes") or () if v["name"] not in added]
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        mounts = container.get("volumeMounts") or ()
        container["volumeMounts"] = [one for one in mounts if one["name"] not in added]
    if node:
        spec["nodeName"] = node
    meta = pod["metadata"]
    annotations = meta.get("annotations") or {}
    if AFFINITY in annotations:
        spec["affinity"] = _own_affinity(annotations[AFFINITY])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": dict(meta.get("labels") or {}),
            "annotations": {k: v for k, v in annotations.items() if k not in _OWN_ANNOTATIONS},
        },
        "spec": spec,
    }


def _own_affinity(text: str) -> Object:
    try:
        found: Object = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"annotation {AFFINITY}: expected JSON: {error}") from None
    return found


def _is_token(volume: Object, spec: Object) -> bool:
    """Whether admission has added it: the Secret of the pod's ServiceAccount, before 1.21."""
    account = spec.get("serviceAccountName", "default")
    return str(volume.get("secret", {}).get("secretName", "")).startswith(f"{account}-token-")


def can_detach(pod: Object) -> bool:
    """Whether its owner lets go of the pod, and makes another, without its being deleted."""
    return bool(_owner_labels(pod))


async def detach(cluster: Cluster, pod: Object) -> None:
    """Have the owner let go of *pod* and make another in its place. Harmless if it has."""
    meta = pod["metadata"]
    await cluster.patch(kube.PODS, meta["namespace"], meta["name"], detaching(pod))


async def let_go(cluster: Cluster, pod: Object) -> None:
    """Have the owner forget a pod that is about to be deleted, or may just have gone: a Job counts
    one of its own that is deleted as a failure."""
    if can_detach(pod):
        with suppress(NotFoundError):
            await detach(cluster, pod)


async def attach(cluster: Cluster, namespace: str, name: str, uid: str) -> None:
    """Give a detached pod back to its owner. Harmless if it is not detached, or gone."""
    pod = await cluster.find(kube.PODS, namespace, name)
    if pod is None or pod["metadata"]["uid"] != uid:
        return
    if patch := attaching(pod):
        await cluster.patch(kube.PODS, namespace, name, patch)


def detaching(pod: Object) -> Object:
    """The patch that has the owner let go of *pod*. Pure, as `attaching` is."""
    known = _owner_labels(pod)
    kept = ",".join(f"{name}={value}" for name, value in known.items())
    return _patch(pod, dict.fromkeys(known), kept)


def attaching(pod: Object) -> Object | None:
    """The patch that gives *pod* back to its owner; None if it is not detached."""
    kept = (pod["metadata"].get("annotations") or {}).get(DETACHED)
    if kept is None:
        return None
    return _patch(pod, dict(one.split("=") for one in kept.split(",")), None)


def _owner_labels(pod: Object) -> dict[str, str]:
    """The labels that the owner alone selects by; none if it has let go, or selects by others."""
    labels = pod["metadata"].get("labels") or {}
    names = _OWNER_LABELS.get((owner(pod) or {}).get("kind", ""), ())
    return {name: labels[name] for name in names if name in labels}


def _patch(pod: Object, labels: dict[str, str | None], kept: str | None) -> Object:
    annotations = {DETACHED: kept}
    return {
        "metadata": {"uid": pod["metadata"]["uid"], "labels": labels, "annotations": annotations}
    }
