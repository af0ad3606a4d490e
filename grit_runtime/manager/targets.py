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
LABEL = "manager.grit.dev/restore"  # of the pod: the Restore's name, as `label` has it

_LABEL_LIMIT = 63  # of a label's value; an object's name may be longer


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
    labels = {**(pod["metadata"].get("labels") or {}), LABEL: label(restore.metadata.name)}
    places = restore.metadata.annotations
    only, without = places.get(NODE, ""), places.get(NOT_NODE, "")
    if only == checkpoint.status.node_name:  # where it came from it can be, whatever holds now
        able = [only]
    else:
        needs = checkpoint.status.needs
        able = nodes.that_can(pod["spec"], needs, only=only, without=without)
    chosen = placement.chosen(able, restore.metadata.name)
    return Asking(annotations, labels, placement.affinity(pod["spec"], chosen))


def label(restore: str) -> str:
    """What the Restore's pod has as its label."""
    if len(restore) <= _LABEL_LIMIT:
        return restore
    digits = hashlib.sha256(restore.encode()).hexdigest()[:10]
    return f"{restore[: _LABEL_LIMIT - 11].rstrip('-.')}-{digits}"


def is_asking(pod: Object) -> bool:
    """Whether the pod was given what makes it one that is restored."""
    return pods.CHECKPOINT in (pod["metadata"].get("annotations") or {})
