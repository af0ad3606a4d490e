"""One of several managers leads: it holds a Lease, and ends when it has lost it.

As client-go does it (tools/leaderelection): whoever leads renews; whoever does not takes the
Lease when it has not seen it change for as long as it lasts. No clocks are compared.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from grit_runtime import log
from grit_runtime.errors import AlreadyExistsError, ConflictError, GritError, UnavailableError
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from grit_runtime.manager.cluster import Cluster, Object

_LASTS_S = 15
_RENEW_EVERY_S = 2.0
_GIVE_UP_S = 10.0  # before others take it


async def led(
    cluster: Cluster, namespace: str, identity: str, lead: Callable[[], Awaitable[None]]
) -> None:
    """Wait until this manager leads, then *lead* until the Lease is lost: UnavailableError."""
    await _taken(cluster, namespace, identity)
    log.info("this manager leads", identity=identity)
    leading = asyncio.ensure_future(lead())
    keeping = asyncio.ensure_future(_kept(cluster, namespace, identity))
    try:
        done, _ = await asyncio.wait((leading, keeping), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in (leading, keeping):
            task.cancel()
        await asyncio.gather(leading, keeping, return_exceptions=True)


async def release(cluster: Cluster, namespace: str, identity: str) -> None:
    """Let another manager lead at once, if this one does."""
    lease = await cluster.find(kube.LEASES, namespace, names.MANAGER)
    if lease and lease["spec"].get("holderIdentity") == identity:
        lease["spec"]["holderIdentity"] = ""
        await cluster.replace(kube.LEASES, lease)


async def _taken(cluster: Cluster, namespace: str, identity: str) -> None:
    seen, since_s = "", time.monotonic()
    while True:
        lease = await cluster.find(kube.LEASES, namespace, names.MANAGER)
        version = lease["metadata"]["resourceVersion"] if lease else ""
        if version != seen:
            seen, since_s = version, time.monotonic()
        holder = (lease or {"spec": {}})["spec"].get("holderIdentity", "")
        if holder in ("", identity) or time.monotonic() - since_s > _LASTS_S:
            try:
                await _write(cluster, namespace, identity, lease)
            except (AlreadyExistsError, ConflictError):
                continue  # another one was quicker
            return
        await asyncio.sleep(_RENEW_EVERY_S)


async def _kept(cluster: Cluster, namespace: str, identity: str) -> None:
    renewed_s = time.monotonic()
    while True:
        await asyncio.sleep(_RENEW_EVERY_S)
        try:
            async with asyncio.timeout(_GIVE_UP_S - (time.monotonic() - renewed_s)):
                lease = await cluster.get(kube.LEASES, namespace, names.MANAGER)
                if lease["spec"].get("holderIdentity") != identity:
                    raise UnavailableError("another manager leads now; this one ends")
                await _write(cluster, namespace, identity, lease)
            renewed_s = time.monotonic()
        except (TimeoutError, GritError) as error:
            raise UnavailableError(f"this manager leads no longer: {error}") from None


async def _write(cluster: Cluster, namespace: str, identity: str, lease: Object | None) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if lease is None:
        meta = {"name": names.MANAGER, "namespace": namespace}
        spec = {"acquireTime": now, "leaseTransitions": 0}
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": meta,
            "spec": _held(spec, identity, now),
        }
        await cluster.create(kube.LEASES, lease)
        return
    spec = lease["spec"]
    if spec.get("holderIdentity") != identity:
        spec["acquireTime"] = now
        spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1
    lease["spec"] = _held(spec, identity, now)
    await cluster.replace(kube.LEASES, lease)


def _held(spec: Object, identity: str, now: str) -> Object:
    return {
        **spec,
        "holderIdentity": identity,
        "leaseDurationSeconds": _LASTS_S,
        "renewTime": now,
    }
