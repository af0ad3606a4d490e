"""A Restore is claimed for one pod before the API server has it, and given up if it never comes.

Another admission may refuse the pod after the webhook has said what it is made of, and nobody is
told of that.
"""

from __future__ import annotations

from datetime import UTC, datetime

from grit_runtime.errors import ConflictError
from grit_runtime.manager import api, pods, targets
from grit_runtime.manager import cluster as kube

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from grit_runtime.manager.api import CheckpointStatus
    from grit_runtime.manager.cluster import Cluster, Object

# Annotations of a Restore that is claimed: since when, and for a pod from which very checkpoint, of
# which pod.
_SINCE = "manager.grit.dev/selected-at"
_DIGEST = "manager.grit.dev/manifest-digest"
SOURCE = "manager.grit.dev/source-uid"

_WAITING = (None, api.CREATED)
_NAME_LIMIT = 245  # of 253


def is_waiting(restore: Object) -> bool:
    """Whether no pod is known to go on by the Restore, and one may."""
    phase = (restore.get("status") or {}).get("phase")
    return phase in _WAITING and "deletionTimestamp" not in restore["metadata"]


def since(restore: Object) -> str | None:
    """What tells one claim of the Restore from another; None if it is nobody's."""
    annotations = _annotations(restore)
    return annotations.get(_SINCE, "") if targets.SELECTED in annotations else None


def noted(checkpoint: CheckpointStatus) -> dict[str, str]:
    """Those of a Restore that is claimed for a pod from the checkpoint with this status."""
    return {
        targets.SELECTED: "true",
        _SINCE: datetime.now(UTC).isoformat(),
        _DIGEST: checkpoint.manifest_digest,
        SOURCE: checkpoint.pod_uid,
    }


def source_uid(restore: Object) -> str:
    """The pod that it brings back, as noted; "" for one that nobody has claimed."""
    return _annotations(restore).get(SOURCE, "")


def is_of(restore: Object, checkpoint: Object) -> bool:
    """Whether the Restore is of this very Checkpoint, not of an earlier one of its name."""
    digest = (checkpoint.get("status") or {}).get("manifestDigest")
    return _annotations(restore).get(_DIGEST, digest) == digest


def free_name(checkpoint: str, known: set[str]) -> str:
    """What a Restore of the Checkpoint is called: as it is, or with a number if that is taken."""
    if checkpoint not in known:
        return checkpoint
    numbers = range(2, len(known) + 3)
    names = (f"{checkpoint[:_NAME_LIMIT].rstrip('-.')}-{number}" for number in numbers)
    return next(name for name in names if name not in known)


async def take(cluster: Cluster, restore: Object, checkpoint: CheckpointStatus) -> None:
    """Take the Restore for one pod. ConflictError if another has it."""
    namespace, name = restore["metadata"]["namespace"], restore["metadata"]["name"]
    while is_waiting(restore) and since(restore) is None:
        if await _patched(cluster, restore, noted(checkpoint)):
            return
        restore = await cluster.get(kube.RESTORES, namespace, name)
    raise ConflictError(f"Restore {namespace}/{name} is another pod's")


async def give_up(cluster: Cluster, namespace: str, name: str) -> None:
    """Let another pod have the Restore, unless the one that it was claimed for has come."""
    while True:
        restore = await cluster.find(kube.RESTORES, namespace, name)
        if restore is None or not is_waiting(restore) or since(restore) is None:
            return
        if await has_come(cluster, restore):
            return
        if await _patched(cluster, restore, dict.fromkeys((targets.SELECTED, _SINCE, _DIGEST))):
            return


async def has_come(cluster: Cluster, restore: Object) -> bool:
    """Whether there is the pod that the Restore was claimed for; one of an earlier Restore of its
    name is not."""
    meta = restore["metadata"]
    labels = f"{targets.LABEL}={targets.label(meta['name'])}"
    digest = _annotations(restore).get(_DIGEST)
    return any(
        digest in (None, pods.came_from(pod))
        for pod in await cluster.every(kube.PODS, meta["namespace"], labels=labels)
    )


async def _patched(cluster: Cluster, restore: Object, changed: Mapping[str, str | None]) -> bool:
    """Whether nobody was quicker to write to the Restore, the manager's status included."""
    meta = restore["metadata"]
    patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "annotations": changed}}
    try:
        await cluster.patch(kube.RESTORES, meta["namespace"], meta["name"], patch)
    except ConflictError:
        return False
    return True


def _annotations(one: Object) -> dict[str, str]:
    return one["metadata"].get("annotations") or {}
