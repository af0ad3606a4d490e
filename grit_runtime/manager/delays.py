"""Pods that do not get as far as their restore: kubelet has no image, or no volume, for them."""

from __future__ import annotations

import asyncio

from grit_runtime.errors import NotRestoredError
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import events, patience, pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from grit_runtime.manager.cluster import Cluster, Object

_LIMIT_S = 300.0  # from the checkpoint's arrival to the verified pod
_LEAST_RATE = 100e6  # bytes per second, which its memory may take beside that
_STUCK_S = 30.0  # in what kubelet hardly gets out of by itself
_STUCK = {
    "CreateContainerConfigError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
}


async def limited(
    cluster: Cluster, pod: Object, work: Coroutine[Any, Any, None], size_bytes: int
) -> None:
    """Do *work*; NotRestoredError with kubelet's reason if the pod, whose checkpoint has arrived,
    is not restored in time."""
    limit_s = _LIMIT_S + size_bytes / _LEAST_RATE
    meta = pod["metadata"]
    if not await patience.unless(work, _stuck(cluster, meta), limit_s):
        why = await events.newest_warning(cluster, meta["namespace"], meta["name"])
        raise NotRestoredError(
            f"pod {meta['name']} was not restored within {limit_s:.0f} s after its checkpoint had "
            f"arrived (timeoutSeconds): {why or 'kubelet does not say why'}"
        )


async def _stuck(cluster: Cluster, meta: Object) -> None:
    """NotRestoredError once kubelet has not got one of the pod's containers further for long."""
    why = ""
    only = f"metadata.name={meta['name']}"
    try:
        async with asyncio.timeout(None) as waiting:
            async for found in cluster.watched(kube.PODS, meta["namespace"], fields=only):
                why = pods.stuck(found.get(meta["name"]) or {}, _STUCK)
                if not why:
                    waiting.reschedule(None)
                elif waiting.when() is None:
                    waiting.reschedule(asyncio.get_running_loop().time() + _STUCK_S)
    except TimeoutError:
        raise NotRestoredError(f"pod {meta['name']} is not restored: {why}") from None
