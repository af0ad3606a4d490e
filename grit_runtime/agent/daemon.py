"""The agent of a node, from its start to SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from functools import partial
from threading import Event

from grit_runtime import certificates, log, paths
from grit_runtime.agent import (
    copies,
    engine,
    fetching,
    helpers,
    identity,
    metrics,
    new_records,
    service,
)
from grit_runtime.agent import job as job_files
from grit_runtime.agent.access import Access
from grit_runtime.agent.calls import Calls
from grit_runtime.agent.identity import Identity
from grit_runtime.agent.job import Job
from grit_runtime.agent.jobs import Jobs
from grit_runtime.agent.kubernetes import ApiServer
from grit_runtime.agent.serving import Server, listening_at
from grit_runtime.agent.work import Work
from grit_runtime.errors import FailedPreconditionError, GritError, one_line
from grit_runtime.files import unfinished
from grit_runtime.host import linux
from grit_runtime.model.annotations import checkpoint_name
from grit_runtime.pod import held_pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from grit_runtime.config import Config
    from grit_runtime.model.outcomes import Outcome
    from grit_runtime.proto import peer_pb2

JOBS_DIR = f"{paths.STATE_DIR}/agent/jobs"

_STOP_S = 10.0
# OpenTelemetry's own: without an endpoint nothing of it is loaded.
_TRACES_GO_TO = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def run(config: Config, service_account: str = "") -> None:
    """Serve until SIGTERM or SIGINT; then running transfers stop at a chunk.

    With the directory of a *service_account* the cluster gives the certificate, and its callers
    have a door. Does not return if a transfer does not stop: it is gone on with at the next start.
    """
    ended = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        api = None
        if service_account:
            api = ApiServer(service_account)
            # A pod's own would show runc and CRIU other paths of cgroups than the node has.
            linux.setns("/proc/1/ns/cgroup")
        node = os.environ.get("NODE_NAME") or socket.gethostname()
        service.take_over(service.SOCKET)
        unfinished.remove_old(config.checkpoint_root)
        jobs = _jobs(config, stack, node, in_pod=api is not None)
        jobs.resume(_undo)  # before anybody asks for the same again
        calls = Calls(jobs, config, node)
        stack.enter_context(service.served(calls))
        if api is None:
            _serve_peers(config, jobs, stack)
        log.info("the agent serves", socket=service.SOCKET)
        _tell_systemd("READY=1")
        if api:
            certificates.cryptography()
            from grit_runtime.agent import enrolment  # brings them

            def open_doors() -> None:
                _serve_peers(config, jobs, stack)
                if config.agent_api_port:
                    served = service.served_to_cluster(
                        calls, jobs, Access(api), config.agent_dir, config.agent_api_port
                    )
                    stack.enter_context(served)

            enrolment.keep(config.agent_dir, node, api, ended, open_doors)
        ended.wait()
        _tell_systemd("STOPPING=1")
        has_stopped = jobs.stop(_STOP_S)
    log.info("the agent has ended", has_stopped=has_stopped)
    if not has_stopped:
        os._exit(0)  # a thread that waits for a peer would keep us


def _jobs(config: Config, stack: ExitStack, node: str, *, in_pod: bool) -> Jobs:
    moved: Callable[[str, int], None] = _untold
    ended: list[Callable[[Job, float], None]] = []
    recorded: list[Callable[[Outcome], None]] = []
    os.makedirs(JOBS_DIR, mode=0o700, exist_ok=True)
    jobs: Jobs
    if config.agent_metrics:
        measured = metrics.Metrics(
            lambda state: sum(one.state == state for one in jobs.every()),
            lambda: sum(copy.size_bytes for copy in copies.every()),
            lambda: sum(not hold.is_resumed for hold in held_pods.every()),
        )
        stack.enter_context(metrics.served(measured, config.agent_metrics, in_pod=in_pod))
        moved = measured.moved
        ended.append(measured.ended)
        recorded.append(measured.recorded)
    if any(map(os.environ.get, _TRACES_GO_TO)):
        traces = stack.enter_context(_tracing().exported(node))
        ended.append(traces.ended)
        recorded.append(traces.recorded)
    if recorded:
        stack.enter_context(new_records.followed(partial(_tell, recorded)))
    work = Work(config, JOBS_DIR, moved)
    jobs = Jobs(JOBS_DIR, work.perform, max(1, config.agent_jobs), partial(_tell, ended))
    return jobs


def _tracing() -> ModuleType:
    try:
        from grit_runtime.agent import tracing
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"{' or '.join(_TRACES_GO_TO)} is set, and traces need the Python package "
            f"{error.name}; install grit-runtime[tracing], or unset it"
        ) from None
    return tracing


def _tell(listeners: Sequence[Callable[..., None]], *what: object) -> None:
    for told in listeners:
        told(*what)


def _untold(*_: object) -> None:
    """Nobody measures."""


def _undo() -> None:
    try:
        engine.recovered()
    except (GritError, OSError) as error:
        log.warning("what a killed checkpoint has left is not undone", reason=one_line(error))


def _serve_peers(config: Config, jobs: Jobs, stack: ExitStack) -> None:
    if not os.path.exists(f"{config.agent_dir}/{identity.CERTIFICATE}"):
        log.warning("no peers: the node has no certificate; grit agent init makes one")
        return
    own = Identity(config.agent_dir)
    listening = listening_at(config.agent_port)
    count = helpers.servers_worth_having()
    stack.enter_context(helpers.serving(listening, config.checkpoint_root, config.agent_dir, count))
    stack.enter_context(Server(config.checkpoint_root, own, listening, fetch=Fetching(jobs).fetch))


class Fetching:
    """Pulls that peers have asked for, as jobs of this node."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def fetch(self, wanted: peer_pb2.Fetch, peer: str, host: str) -> Iterator[peer_pb2.Progress]:
        """Prepare a checkpoint of the *peer* that asks, and say how far that is."""
        checkpoint = wanted.checkpoint
        job = self._jobs.submit(
            Job(
                id="",
                kind=job_files.PREPARE,
                namespace=checkpoint_name(checkpoint.namespace),
                name=checkpoint_name(checkpoint.name),
                url=fetching.url_of(wanted, peer),
                host=host,
                sha256=checkpoint.sha256,
            )
        )
        return fetching.progress(self._jobs.follow(job.id))


def _tell_systemd(state: str) -> None:
    """sd_notify(3), if systemd waits for it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = path.replace("@", "\0", 1) if path[0] == "@" else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError as error:  # whoever waited has ended, and the agent has more to do
            log.warning("nobody hears of the agent's state", state=state, reason=error)
