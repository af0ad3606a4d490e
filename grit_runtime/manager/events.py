"""Events: what is said of nodes, which `kubectl describe` shows, and what is said of pods."""

from __future__ import annotations

from datetime import UTC, datetime

from grit_runtime.manager import cluster as kube
from grit_runtime.manager import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Cluster, Object

_NAMESPACE = "default"  # of what is said of objects that have none
_MESSAGE_LIMIT = 1024


async def tell(cluster: Cluster, node: Object, kind: str, why: str, message: str) -> None:
    """Say it of the node: *kind* is Normal or Warning."""
    meta = node["metadata"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{meta['name'][:200]}-", "namespace": _NAMESPACE},
        "type": kind,
        "reason": why,
        "message": message[:_MESSAGE_LIMIT],
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Node",
            "name": meta["name"],
            "uid": meta["uid"],
        },
        "source": {"component": names.MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    await cluster.create(kube.EVENTS, event)


async def newest_warning(cluster: Cluster, namespace: str, pod: str) -> str:
    """The last warning about the pod, on one line; "" without one."""
    about = f"involvedObject.name={pod},type=Warning"
    events = await cluster.every(kube.EVENTS, namespace, fields=about)
    newest = max(events, key=lambda one: str(one.get("lastTimestamp")), default={})
    return " ".join(str(newest.get("message", "")).split())
