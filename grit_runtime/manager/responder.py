"""Evictions as objects (lifecycle.k8s.io, KEP-4563): a pod that can move does, and we say how far.

A pod names its responders when it is made, and never later, so the webhook names us. What becomes
of the pod is decided as for an eviction by the older API, which comes after us if the pod is let
go.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from grit_runtime import log
from grit_runtime.errors import BusyError, GritError, NotFoundError, one_line
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import evictions, patience, pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.cluster import Cluster, Object

FIELD = "evictionResponders"  # of a pod's spec
NAME = "manager.grit.dev/mover"
OURS = {"name": NAME, "priority": 20_000}  # before the pod's controller, which has 10,000

_MAX_RESPONDERS = 10
_HEARTBEAT_S = 30.0  # more than 20 s are asked for, and less than 20 minutes
_ASK_AGAIN_S = 600.0  # whether the server has such objects by now
_MESSAGE_LIMIT = 4000


def patch(pod: Object) -> tuple[dict[str, Any], ...]:
    """What makes us a responder of a new pod, if it may have one (JSON patch)."""
    spec = pod["spec"]
    named = spec.get(FIELD) or []
    if (
        evictions.stays(pod)
        or "schedulingGroup" in spec
        or len(named) >= _MAX_RESPONDERS
        or any(one["name"] == NAME for one in named)
    ):
        return ()
    return ({"op": "add", "path": f"/spec/{FIELD}", "value": [*named, OURS]},)


async def respond(cluster: Cluster) -> None:
    """Respond to the Evictions of which it is our turn, each by a task of its own."""

    async def work(eviction: Object) -> None:
        meta = eviction["metadata"]
        await _respond(cluster, meta["namespace"], meta["name"])

    while True:
        try:
            await patience.for_each(cluster.watched(kube.EVICTIONS, "*"), is_ours, work)
        except NotFoundError:
            await asyncio.sleep(_ASK_AGAIN_S)


def is_ours(eviction: Object) -> bool:
    """Whether it is our turn, and we have not said that we are done."""
    status = eviction.get("status") or {}
    is_active = any(
        one["name"] == NAME and one.get("state") == "Active"
        for one in status.get("targetResponders") or ()
    )
    own = next((one for one in status.get("responders") or () if one["name"] == NAME), None)
    return is_active and own is not None and not own.get("completionTime")


async def _respond(cluster: Cluster, namespace: str, name: str) -> None:
    is_done = False
    while not is_done:
        try:
            eviction = await cluster.get(kube.EVICTIONS, namespace, name)
            if not is_ours(eviction):
                return
            is_done, message = await _answer(cluster, namespace, eviction["spec"]["target"])
            told = responses(eviction, datetime.now(UTC), message, is_done=is_done)
            await cluster.patch(kube.EVICTIONS, namespace, name, told, status=True)
        except GritError as error:
            is_done = isinstance(error, NotFoundError)  # it is no more
            log.warning("an eviction is not answered", name=name, reason=one_line(error))
        await asyncio.sleep(0 if is_done else _HEARTBEAT_S)


async def _answer(cluster: Cluster, namespace: str, target: Object) -> tuple[bool, str]:
    """Whether we are done with the pod, and what has become of it."""
    wanted = target.get("pod") or {}
    pod = await pods.living(cluster, namespace, wanted.get("name", ""), wanted.get("uid", ""))
    if pod is None:
        return True, "the pod has gone"
    try:
        warnings = await evictions.review(
            cluster, {"namespace": namespace, "name": pod["metadata"]["name"]}
        )
    except BusyError as error:
        return False, one_line(error)
    except NotFoundError as error:
        return True, one_line(error)
    return True, "; ".join(warnings) or f"{pods.where(pod)} does not move, and may be evicted"


def responses(eviction: Object, now: datetime, message: str, *, is_done: bool) -> Object:
    """The merge patch that says so, of the very Eviction: it has what others say, too."""
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    new = {"heartbeatTime": time, "message": message[:_MESSAGE_LIMIT]}
    if is_done:
        new["completionTime"] = time
    told = [
        {**one, **new} if one["name"] == NAME else one for one in eviction["status"]["responders"]
    ]
    version = eviction["metadata"]["resourceVersion"]
    return {"metadata": {"resourceVersion": version}, "status": {"responders": told}}
