"""The calls of the agent's API, which is grit_runtime/proto/agent.proto.

A call is a function of its request. Those of a stream also get what says whether the caller is
still there. Who may call is not looked at here.
"""

from __future__ import annotations

import json
import os
import re

from grit_runtime.agent import copies, engine, peers, pod_volumes
from grit_runtime.agent import job as jobs
from grit_runtime.agent.job import Job
from grit_runtime.errors import FailedPreconditionError, InvalidArgumentError
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import records
from grit_runtime.host.changes import Changes
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import compatibility, losses
from grit_runtime.model.annotations import NCCL, TCP, capture, checkpoint_name, nccl, tcp
from grit_runtime.proto import agent_pb2
from grit_runtime.store import catalog
from grit_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.agent.jobs import Jobs
    from grit_runtime.config import Config
    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.store.backend import Backend

    IsThere = Callable[[], bool]

_URLS = ("/", "s3://", "gs://", "az://", pod_volumes.SCHEME, "peer://")
_TOKEN_LIMIT = 64
_AFTER = ("running", "frozen", "stopped")
_UID = re.compile(r"[-0-9a-zA-Z]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOOK_EVERY_S = 1.0  # whether a caller that follows records has gone


class Calls:
    """Those of a node, as the cluster names it."""

    def __init__(self, jobs: Jobs, config: Config, node: str) -> None:
        self._jobs = jobs
        self._config = config
        self._node = node

    def checkpoint(self, request: agent_pb2.CheckpointRequest) -> agent_pb2.Job:
        namespace, pod = _target(request.target)
        if request.after not in _AFTER:
            raise InvalidArgumentError(f"after {request.after[:80]!r}: expected one of {_AFTER}")
        volumes = ",".join(request.capture)
        capture(volumes)  # AnnotationError for what means nothing
        job = Job(
            id="",
            kind=jobs.CHECKPOINT,
            namespace=checkpoint_name(namespace),
            name=checkpoint_name(request.name or pod),
            url=_url(request.push) if request.push else "",
            target=request.target,
            after=request.after,
            replace=request.replace,
            pod_is_going=request.pod_is_going,
            strict=request.strict,
            uid=request.uid and _uid(request.uid),
            capture=volumes,
            tcp=request.tcp and tcp({TCP: request.tcp}),
            nccl=request.nccl and nccl({NCCL: request.nccl}),
            token=request.token[:_TOKEN_LIMIT],
        )
        return _message(self._jobs.submit(job))

    def prepare(self, request: agent_pb2.PrepareRequest) -> agent_pb2.Job:
        job = Job(
            "",
            jobs.PREPARE,
            *_names(request),
            url=_url(request.source),
            host=request.host,
            sha256=request.sha256,
        )
        return _message(self._jobs.submit(job))

    def push(self, request: agent_pb2.PushRequest) -> agent_pb2.Job:
        names, url = _names(request), _url(request.target)
        job = Job("", jobs.PUSH, *names, url=url, sha256=self._sealed(names).sha256)
        return _message(self._jobs.submit(job))

    def status(self, _request: agent_pb2.StatusRequest) -> agent_pb2.StatusReply:
        return agent_pb2.StatusReply(jobs=map(_message, self._jobs.every()))

    def cancel(self, request: agent_pb2.JobRequest) -> agent_pb2.Job:
        return _message(self._jobs.cancel(request.id))

    def follow(self, request: agent_pb2.JobRequest, _is_there: IsThere) -> Iterator[agent_pb2.Job]:
        return map(_message, self._jobs.follow(request.id))

    def facts(self, _request: agent_pb2.FactsRequest) -> agent_pb2.FactsReply:
        return agent_pb2.FactsReply(
            facts=engine.facts_here(),
            node=self._node,
            version=VERSION,
            checkpoint_root=self._config.checkpoint_root,
        )

    def describe(self, request: agent_pb2.CheckpointRef) -> agent_pb2.Description:
        sealed = self._sealed(_names(request))
        manifest = sealed.manifest
        reply = agent_pb2.Description(
            sha256=sealed.sha256,
            size_bytes=manifest.size_bytes,
            gpu_bytes=manifest.gpu_bytes,
            created=manifest.created,
            containers=[container.name for container in manifest.running],
            needs=compatibility.dump_facts(compatibility.needs_of(manifest)),
            warnings=map(losses.line, manifest.warnings),
        )
        for phase in manifest.timeline:
            reply.phases[phase.phase] += phase.seconds
        return reply

    def resume(self, request: agent_pb2.ResumeRequest) -> agent_pb2.ResumeReply:
        _target(request.target)
        checkpoint = request.checkpoint and checkpoint_name(request.checkpoint)
        engine.resumed(request.target, request.uid and _uid(request.uid), checkpoint)
        return agent_pb2.ResumeReply()

    def remove(self, request: agent_pb2.RemoveRequest) -> agent_pb2.RemoveReply:
        names = _names(request)
        store = _store(request.store, request.sha256) if request.store else None
        deleted_pod_uid = request.deleted_pod_uid and _uid(request.deleted_pod_uid)
        for job in self._jobs.every():
            if not job.has_ended and (job.namespace, job.name) == names:
                raise FailedPreconditionError(
                    f"checkpoint {'/'.join(names)} is what job {job.id} works on: remove it when "
                    "that has ended"
                )
        copies.remove(self._config.checkpoint_root, *names, deleted_pod_uid)
        if store:
            catalog.remove(store, *names, request.sha256)
        return agent_pb2.RemoveReply()

    def records(
        self, request: agent_pb2.RecordsRequest, is_there: IsThere
    ) -> Iterator[agent_pb2.RecordsReply]:
        pod_uid = _uid(request.pod_uid)
        os.makedirs(records.DIR, mode=0o700, exist_ok=True)
        told = None
        with Changes() as changes:
            changes.watch(records.DIR)
            while is_there():
                now = records.of_pod(pod_uid)
                if now != told:
                    told = now
                    plain = [outcome._asdict() for outcome in now]
                    yield agent_pb2.RecordsReply(records=json.dumps(plain))
                if not request.follow:
                    return
                changes.wait(_LOOK_EVERY_S)

    def _sealed(self, names: tuple[str, str]) -> Checkpoint:
        """This node's checkpoint of that name."""
        root = self._config.checkpoint_root
        with closing_fd(checkpoint_dir.open_named(root, names)) as dir_fd:
            return checkpoint_dir.read_manifest(dir_fd, "/".join((root, *names)))


def _names(
    request: agent_pb2.PrepareRequest
    | agent_pb2.PushRequest
    | agent_pb2.CheckpointRef
    | agent_pb2.RemoveRequest,
) -> tuple[str, str]:
    return checkpoint_name(request.namespace), checkpoint_name(request.name)


def _store(url: str, sha256: str) -> Backend:
    if not _SHA256.fullmatch(sha256):
        raise InvalidArgumentError(
            f"sha256 {sha256[:80]!r}: expected 64 hexadecimal digits, of the manifest of the "
            "checkpoint that is to go from the store"
        )
    if peers.is_peer(url):
        raise InvalidArgumentError(f"{url[:200]!r} is a peer, expected a store")
    return pod_volumes.open_store(_url(url))


def _target(target: str) -> tuple[str, str]:
    namespace, slash, pod = target.partition("/")
    if not slash:
        raise InvalidArgumentError(f"target {target[:80]!r}: expected NAMESPACE/POD")
    return namespace, pod


def _uid(uid: str) -> str:
    """*uid* if it can be a pod's: it becomes the name of a file."""
    if not _UID.fullmatch(uid):
        raise InvalidArgumentError(f"uid {uid[:80]!r}: expected a pod's, as kubectl shows it")
    return uid


def _url(url: str) -> str:
    if not url.startswith(_URLS):
        raise InvalidArgumentError(
            f"{url[:200]!r} is neither a store nor a peer: expected one of {', '.join(_URLS)} first"
        )
    return url


def _message(job: Job) -> agent_pb2.Job:
    fields = agent_pb2.Job.DESCRIPTOR.fields_by_name
    return agent_pb2.Job(**{name: getattr(job, name) for name in fields})
