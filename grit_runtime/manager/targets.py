"""What makes a new pod one that goes on from a checkpoint, on a node that can."""

from __future__ import annotations

import hashlib
import json

from grit_runtime.manager import placement, pods
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.api import Checkpoint, Restore
    from grit_runtime.manager.cluster import Object
    from grit_runtime.manager.nodes import Nodes

NODE = "manager.grit.dev/node"  # of a Restore: the only node that its pod may go to
NOT_NODE = "manager.grit.dev/not-node"  # or one that it may not go to
SELECTED = "grit.dev/pod-selected"  # of a Restore: a pod has been found for it, as upstream has it
LABEL = "manager.grit.dev/restore"  # of the pod: its Restore

_VALUE_LIMIT, _DIGITS = 63, 16  # a label's value is shorter than a name may be


class Asking(NamedTuple):
    """All annotations and labels of the pod, its own too, and its affinity."""

    annotations: dict[str, str]
    labels: dict[str, str]
    affinity: dict[str, Any]


def asking(
    pod: Object, restore: Restore, checkpoint: Checkpoint, nodes: Nodes, checkpoint_root: str
) -> Asking:
    """What the pod is given. NoNodeError if no node can take it."""
    meta = checkpoint.metadata
    annotations = {
        **(pod["metadata"].get("annotations") or {}),
        pods.RESTORE_NAME: restore.metadata.name,
        pods.CHECKPOINT: f"{checkpoint_root}/{meta.namespace}/{meta.name}",
        pods.MANIFEST_DIGEST: checkpoint.status.manifest_digest,
        pods.AFFINITY: json.dumps(pod["spec"].get("affinity") or {}),
    }
    if checkpoint.spec.tcp:
        annotations[pods.TCP] = checkpoint.spec.tcp
    if restore.spec.on_failure == "coldStart":
        annotations[pods.ON_FAILURE] = "cold-start"
    labels = {**(pod["metadata"].get("labels") or {}), LABEL: value(restore.metadata.name)}
    places = restore.metadata.annotations
    only, without = places.get(NODE), places.get(NOT_NODE, "")
    able = [only] if only else nodes.that_can(pod["spec"], checkpoint.status.needs, without)
    return Asking(annotations, labels, placement.affinity(pod["spec"], able))


def value(name: str) -> str:
    """What the label is for a Restore of that *name*: the name itself, if it can be."""
    if len(name) <= _VALUE_LIMIT:
        return name
    digits = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return f"{name[: _VALUE_LIMIT - _DIGITS - 1].rstrip('-.')}-{digits}"


def is_asking(pod: Object) -> bool:
    """Whether the pod was given what makes it one that is restored."""
    return pods.CHECKPOINT in (pod["metadata"].get("annotations") or {})
