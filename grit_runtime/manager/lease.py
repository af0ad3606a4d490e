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


class Lease:
    """The Lease, as the manager of this *identity* sees it."""

    def __init__(self, cluster: Cluster, namespace: str, identity: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._identity = identity

    async def led(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait until this manager leads, then *lead* until it is lost: UnavailableError."""
        await self._taken()
        log.info("this manager leads", identity=self._identity)
        leading = asyncio.ensure_future(lead())
        keeping = asyncio.ensure_future(self._kept())
        try:
            done, _ = await asyncio.wait((leading, keeping), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in (leading, keeping):
                task.cancel()
            await asyncio.gather(leading, keeping, return_exceptions=True)

    async def release(self) -> None:
        """Let another manager lead at once, if this one does."""
        lease = await self._cluster.find(kube.LEASES, self._namespace, names.MANAGER)
        if lease and lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = ""
            await self._cluster.replace(kube.LEASES, lease)

    async def _taken(self) -> None:
        seen, since_s = "", time.monotonic()
        while True:
            lease = await self._cluster.find(kube.LEASES, self._namespace, names.MANAGER)
            version = lease["metadata"]["resourceVersion"] if lease else ""
            if version != seen:
                seen, since_s = version, time.monotonic()
            holder = (lease or {"spec": {}})["spec"].get("holderIdentity", "")
            if holder in ("", self._identity) or time.monotonic() - since_s > _LASTS_S:
                try:
                    await self._write(lease)
                except (AlreadyExistsError, ConflictError):
                    continue  # another one was quicker
                return
            await asyncio.sleep(_RENEW_EVERY_S)

    async def _kept(self) -> None:
        renewed_s = time.monotonic()
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            try:
                async with asyncio.timeout(_GIVE_UP_S - (time.monotonic() - renewed_s)):
                    lease = await self._cluster.get(kube.LEASES, self._namespace, names.MANAGER)
                    if lease["spec"].get("holderIdentity") != self._identity:
                        raise UnavailableError("another manager leads now; this one ends")
                    await self._write(lease)
                renewed_s = time.monotonic()
            except TimeoutError:
                why = f"the API server has not answered for {_GIVE_UP_S:g} s"
                raise UnavailableError(f"this manager leads no longer: {why}") from None
            except GritError as error:
                raise UnavailableError(f"this manager leads no longer: {error}") from None

    async def _write(self, lease: Object | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if lease is None:
            meta = {"name": names.MANAGER, "namespace": self._namespace}
            spec = {"acquireTime": now, "leaseTransitions": 0}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": meta,
                "spec": _held(spec, self._identity, now),
            }
            await self._cluster.create(kube.LEASES, lease)
            return
        spec = lease["spec"]
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1
        lease["spec"] = _held(spec, self._identity, now)
        await self._cluster.replace(kube.LEASES, lease)


def _held(spec: Object, identity: str, now: str) -> Object:
    return {
        **spec,
        "holderIdentity": identity,
        "leaseDurationSeconds": _LASTS_S,
        "renewTime": now,
    }
