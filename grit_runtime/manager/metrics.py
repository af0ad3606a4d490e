"""What Prometheus reads of the manager, and whether it lives and is ready, over HTTP."""

from __future__ import annotations

from contextlib import asynccontextmanager

import prometheus_client as prometheus
from aiohttp import web

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_REVIEW_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
_ENDED_S = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """The manager's."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._reviews = prometheus.Histogram(
            "grit_manager_review_seconds",
            "From a webhook's call to its answer",
            ["path"],
            buckets=_REVIEW_S,
            registry=self.registry,
        )
        self._ended = prometheus.Histogram(
            "grit_manager_object_seconds",
            "From an object's creation to its end",
            ["kind", "phase", "reason"],
            buckets=_ENDED_S,
            registry=self.registry,
        )
        self._running = prometheus.Gauge(
            "grit_manager_objects_now",
            "Objects that have not come to their end",
            ["kind"],
            registry=self.registry,
        )
        self._leads = prometheus.Gauge(
            "grit_manager_leads", "1 if this manager is the one that acts", registry=self.registry
        )

    def reviewed(self, path: str, seconds: float) -> None:
        self._reviews.labels(path).observe(seconds)

    def begun(self, kind: str) -> None:
        self._running.labels(kind).inc()

    def ended(self, kind: str, phase: str, reason: str, seconds: float) -> None:
        """An object came to its end; an empty phase is one that will be gone on with."""
        self._running.labels(kind).dec()
        if phase:
            self._ended.labels(kind, phase, reason).observe(seconds)

    def leads(self, value: int) -> None:
        self._leads.set(value)


@asynccontextmanager
async def served(metrics: Metrics, port: int) -> AsyncIterator[None]:
    """Serve /metrics and /healthz at *port* while the block runs."""

    async def tell(_: web.Request) -> web.Response:
        body = prometheus.generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST})

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    application = web.Application()
    application.router.add_get("/metrics", tell)
    application.router.add_get("/healthz", live)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
