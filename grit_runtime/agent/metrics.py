"""What Prometheus reads of the agent, and whether it lives, over HTTP."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.model import outcomes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.agent.job import Job
    from grit_runtime.model.outcomes import Outcome

_JOB_S = (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)
_PHASE_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)

CHECKPOINT, RESTORE = "checkpoint", "restore"
# One that was started cold since its restore failed has lost what it had done.
COLD_ON_FAILURE = "cold_on_failure"
_OUTCOMES = {
    CHECKPOINT: (outcomes.SEALED, outcomes.FAILED, outcomes.LOST),
    RESTORE: (
        *(outcomes.RESTORED, outcomes.FAILED, outcomes.SKIPPED, outcomes.COLD),
        COLD_ON_FAILURE,
    ),
}


class Metrics:
    """The agent's. FailedPreconditionError without the package that they are made with."""

    def __init__(
        self,
        running: Callable[[str], int],
        used_bytes: Callable[[], int],
        held_pods: Callable[[], int],
    ) -> None:
        try:
            import prometheus_client
        except ModuleNotFoundError:
            raise FailedPreconditionError(
                "metrics need the Python package prometheus-client; install grit-runtime[agent], "
                "or set agent_metrics = 0"
            ) from None
        self.registry = prometheus_client.CollectorRegistry()
        self._of_jobs(running, used_bytes)
        self._of_records(held_pods)

    def _of_jobs(self, running: Callable[[str], int], used_bytes: Callable[[], int]) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._moved = Counter(
            "grit_moved_bytes", "Bytes over the link", ["direction"], registry=self.registry
        )
        for direction in ("in", "out"):
            self._moved.labels(direction)
        self._ended = Counter(
            "grit_jobs",
            "Jobs that have ended, by how",
            ["kind", "outcome", "reason"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "grit_job_seconds",
            "From a job's beginning to its end",
            ["kind"],
            buckets=_JOB_S,
            registry=self.registry,
        )
        jobs = Gauge("grit_jobs_now", "Jobs that have not ended", ["state"], registry=self.registry)
        for state in ("queued", "running"):
            jobs.labels(state).set_function(partial(running, state))
        copies = Gauge(
            "grit_copies_bytes", "Of checkpoints that the agent has brought", registry=self.registry
        )
        copies.set_function(used_bytes)

    def _of_records(self, held_pods: Callable[[], int]) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._acts = {
            act: Counter(
                f"grit_{act}s",
                f"{act.capitalize()}s that have ended, by how",
                ["outcome"],
                registry=self.registry,
            )
            for act in _OUTCOMES
        }
        self._failures = Counter(
            "grit_failures",
            "Checkpoints and restores that failed, by the reason",
            ["act", "reason"],
            registry=self.registry,
        )
        self._phases = Histogram(
            "grit_phase_seconds",
            "Of checkpoints and restores, from the beginning of a phase to its end",
            ["act", "phase"],
            buckets=_PHASE_S,
            registry=self.registry,
        )
        self._bytes = Counter(
            "grit_phase_bytes",
            "What the phases of checkpoints and restores have read or written",
            ["act", "phase"],
            registry=self.registry,
        )
        # From 0 on: what appears with its first event has not increased by it.
        for act, ends in _OUTCOMES.items():
            for end in ends:
                self._acts[act].labels(end)
        self._phases.labels(CHECKPOINT, "paused")
        self._phases.labels(RESTORE, "all")
        held = Gauge("grit_held_pods", "Pods that are held frozen", registry=self.registry)
        held.set_function(held_pods)

    def moved(self, direction: str, size_bytes: int) -> None:
        """So many bytes went "in" or "out"."""
        self._moved.labels(direction).inc(size_bytes)

    def ended(self, job: Job, seconds: float) -> None:
        self._ended.labels(job.kind, job.state, job.reason).inc()
        self._seconds.labels(job.kind).observe(seconds)

    def recorded(self, one: Outcome) -> None:
        """A checkpoint or a container's restore has ended."""
        act = RESTORE if one.container else CHECKPOINT
        self._acts[act].labels(COLD_ON_FAILURE if one.binds else one.outcome).inc()
        if one.error:
            self._failures.labels(act, one.error).inc()
        for phase in one.timeline:
            self._phases.labels(act, phase["phase"]).observe(phase["seconds"])
            if "size_bytes" in phase and "record" not in phase:  # nothing was read
                self._bytes.labels(act, phase["phase"]).inc(phase["size_bytes"])


class _DualStack(ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextmanager
def served(metrics: Metrics, port: int, *, in_pod: bool = False) -> Iterator[int]:
    """Serve /metrics and /healthz while the block runs; the port, which is chosen for 0.

    To this machine alone, or to all who reach the pod that this is *in_pod* of.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            if self.path == "/healthz":
                self._send("text/plain", b"ok\n")
            elif self.path == "/metrics":
                self._send(CONTENT_TYPE_LATEST, generate_latest(metrics.registry))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def log_message(self, *_: object) -> None:
            """Nobody needs a line for each scrape."""

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    kind = _DualStack if in_pod and socket.has_dualstack_ipv6() else ThreadingHTTPServer
    server = kind(("" if in_pod else "127.0.0.1", port), Handler)
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
