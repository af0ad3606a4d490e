"""Whether a node is lost, and whether it is sure that it runs no pods. Pure.

As for a non-graceful shutdown (KEP-2268): by the taint out-of-service, or by our annotation.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Object

FENCED = "manager.grit.dev/fenced"  # of a node: "true" if it runs no pods
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


def is_lost(node: Object) -> bool:
    """Whether nothing is heard of the node."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] != "True" for one in conditions)


def is_fenced(node: Object) -> bool:
    """Whether somebody has said that the node runs no pods."""
    taints = (node.get("spec") or {}).get("taints") or ()
    return (node["metadata"].get("annotations") or {}).get(FENCED) == "true" or any(
        one["key"] == OUT_OF_SERVICE for one in taints
    )
