"""Traces: checkpoints, jobs and restores as spans, sent by OTLP over HTTP.

They are made of records and of jobs that have ended, so no checkpoint or restore waits for them. A
trace is what becomes of one checkpoint. Its id and that of its first span are of the manifest's
digest, so nodes that know nothing of each other's spans send those of one trace.
"""

from __future__ import annotations

import calendar
import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Thread

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from grit_runtime import log
from grit_runtime.agent import job as jobs
from grit_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from grit_runtime.agent.job import Job
    from grit_runtime.model.outcomes import Outcome

# What spans are called, besides those of phases and jobs.
CHECKPOINT, RESTORE = "checkpoint of a pod", "restore of a container"

_FLUSH_S = 3.0  # a collector that does not answer holds up the agent's end no longer
_TOTAL = "all"  # the phase that is the sum of a restore

_next: ContextVar[SpanContext | None] = ContextVar("_next", default=None)


@contextmanager
def exported(node: str) -> Iterator[Traces]:
    """The traces of *node*, until the block ends; the environment says where they go, and how."""
    ours = {"service.name": "grit-agent", "service.version": VERSION, "k8s.node.name": node}
    resource = Resource.create(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
    logging.getLogger("opentelemetry").addHandler(_Log())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield Traces(provider.get_tracer("grit_runtime", VERSION))
    finally:
        ending = Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(_FLUSH_S)


class Traces:
    """What these are told of becomes spans; from any thread."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def recorded(self, one: Outcome) -> None:
        """A checkpoint or a container's restore has ended; what was never begun has no span."""
        phases = [phase for phase in one.timeline if "epoch_s" in phase]
        if not phases and not one.error:
            return
        ended_s = float(calendar.timegm(time.strptime(one.time, "%Y-%m-%dT%H:%M:%SZ")))
        begin_s = min((phase["epoch_s"] - phase["begin_s"] for phase in phases), default=ended_s)
        end_s = max((phase["epoch_s"] + phase["seconds"] for phase in phases), default=ended_s)
        first = _first(one.manifest_sha256)
        if one.container:
            span = self._tracer.start_span(RESTORE, _below(first), start_time=_ns(begin_s))
        else:
            token = _next.set(first)
            span = self._tracer.start_span(CHECKPOINT, start_time=_ns(begin_s))
            _next.reset(token)
        span.set_attributes(_said(_about(one)))
        if one.error:
            span.set_status(Status(StatusCode.ERROR, one.reason))
        for phase in phases:
            if phase["phase"] != _TOTAL:
                self._phase(phase, trace.set_span_in_context(span))
        span.end(_ns(end_s))

    def _phase(self, phase: dict[str, Any], act: Context) -> None:
        begin_s = phase["epoch_s"]
        span = self._tracer.start_span(phase["phase"], act, start_time=_ns(begin_s))
        about = {
            "k8s.container.name": phase.get("container"),
            "grit.size_bytes": phase.get("size_bytes"),
        }
        span.set_attributes(_said(about))
        if phase.get("failed"):
            span.set_status(StatusCode.ERROR)
        span.end(_ns(begin_s + phase["seconds"]))

    def ended(self, job: Job, seconds: float) -> None:
        """A job has ended, after so many seconds; none is traced that had no checkpoint yet."""
        if not job.sha256:
            return
        now_s = time.time()
        parent = _below(_first(job.sha256))
        span = self._tracer.start_span(f"{job.kind} job", parent, start_time=_ns(now_s - seconds))
        about = {
            "grit.checkpoint": f"{job.namespace}/{job.name}",
            "grit.manifest_sha256": job.sha256,
            "grit.job": job.id,
            "grit.url": job.url,
            "grit.outcome": job.state,
            "grit.size_bytes": job.size_bytes,
            "grit.moved_bytes": job.moved_bytes,
            "error.type": job.reason,
        }
        span.set_attributes(_said(about))
        if job.state == jobs.FAILED:
            span.set_status(Status(StatusCode.ERROR, job.text))
        span.end(_ns(now_s))


class _Ids(RandomIdGenerator):
    """Random ones, unless the span that is just begun is the first of a checkpoint's trace."""

    def generate_trace_id(self) -> int:
        first = _next.get()
        return first.trace_id if first else super().generate_trace_id()

    def generate_span_id(self) -> int:
        first = _next.get()
        return first.span_id if first else super().generate_span_id()


class _Log(logging.Handler):
    """What OpenTelemetry has to say goes where the agent's lines go."""

    def emit(self, record: logging.LogRecord) -> None:
        log.warning("traces are not sent", reason=record.getMessage())


def _first(sha256: str) -> SpanContext | None:
    """The first span of the trace of the checkpoint with that digest, its taking."""
    if not sha256:
        return None
    return SpanContext(
        trace_id=int(sha256[:32], 16),
        span_id=int(sha256[32:48], 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )


def _below(first: SpanContext | None) -> Context | None:
    return trace.set_span_in_context(NonRecordingSpan(first)) if first else None


def _about(one: Outcome) -> dict[str, Any]:
    return {
        "k8s.namespace.name": one.namespace,
        "k8s.pod.name": one.pod,
        "k8s.pod.uid": one.pod_uid,
        "k8s.container.name": one.container,
        "container.id": one.container_id,
        "grit.checkpoint": one.checkpoint,
        "grit.manifest_sha256": one.manifest_sha256,
        "grit.outcome": one.outcome,
        "error.type": one.error,
    }


def _said(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value}


def _ns(time_s: float) -> int:
    return int(time_s * 1e9)
