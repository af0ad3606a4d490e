"""The agent's API, which is grit_runtime/proto/agent.proto, on a unix socket for root alone."""

from __future__ import annotations

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import grpc

from grit_runtime import paths
from grit_runtime.agent import job as jobs
from grit_runtime.agent.job import Job
from grit_runtime.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    GritError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    one_line,
    reason,
)
from grit_runtime.model.annotations import checkpoint_name
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from grit_runtime.agent.jobs import Jobs

SOCKET = f"{paths.RUN_DIR}/agent.sock"
SERVICE = "grit.agent.v1.Agent"
REASON = "grit-reason"  # of an error, in the trailing metadata

_THREADS = 16  # a follower takes one
_STOP_S = 1.0
_URLS = ("/", "s3://", "gs://", "az://", "peer://")
_AFTER = ("running", "frozen", "stopped")

_CODES = {
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
}


@contextmanager
def served(jobs: Jobs, path: str = SOCKET) -> Iterator[None]:
    """Serve the API at *path*, which is taken over already, while the block runs."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([_handlers(_Calls(jobs))])
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    server.start()
    try:
        yield
    finally:
        server.stop(_STOP_S).wait()
        with suppress(FileNotFoundError):
            os.unlink(path)


def take_over(path: str) -> None:
    """Make the socket's directory, and remove a socket that nobody listens at any more.

    FailedPreconditionError if another agent listens there, or the name is not ours to take.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise FailedPreconditionError(
            f"{path} is {'a socket' if stat.S_ISSOCK(status.st_mode) else 'no socket'} of user "
            f"{status.st_uid}, expected a socket of user {os.geteuid()}; remove it"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise FailedPreconditionError(f"an agent listens at {path} already; stop that one first")


class _Calls:
    """The calls, each as a function of its request."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def checkpoint(self, request: agent_pb2.CheckpointRequest) -> agent_pb2.Job:
        namespace, slash, pod = request.target.partition("/")
        if not slash:
            raise InvalidArgumentError(f"target {request.target[:80]!r}: expected NAMESPACE/POD")
        if request.after not in _AFTER:
            raise InvalidArgumentError(f"after {request.after[:80]!r}: expected one of {_AFTER}")
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
        )
        return _message(self._jobs.submit(job))

    def prepare(self, request: agent_pb2.PrepareRequest) -> agent_pb2.Job:
        names = checkpoint_name(request.namespace), checkpoint_name(request.name)
        job = Job("", jobs.PREPARE, *names, url=_url(request.source), sha256=request.sha256)
        return _message(self._jobs.submit(job))

    def push(self, request: agent_pb2.PushRequest) -> agent_pb2.Job:
        names = checkpoint_name(request.namespace), checkpoint_name(request.name)
        return _message(self._jobs.submit(Job("", jobs.PUSH, *names, url=_url(request.target))))

    def status(self, _request: agent_pb2.StatusRequest) -> agent_pb2.StatusReply:
        return agent_pb2.StatusReply(jobs=map(_message, self._jobs.every()))

    def cancel(self, request: agent_pb2.JobRequest) -> agent_pb2.Job:
        return _message(self._jobs.cancel(request.id))

    def follow(self, request: agent_pb2.JobRequest) -> Iterator[agent_pb2.Job]:
        return map(_message, self._jobs.follow(request.id))


def _handlers(calls: _Calls) -> grpc.GenericRpcHandler[Any, Any]:
    unary: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "Checkpoint": (calls.checkpoint, agent_pb2.CheckpointRequest),
        "Prepare": (calls.prepare, agent_pb2.PrepareRequest),
        "Push": (calls.push, agent_pb2.PushRequest),
        "Status": (calls.status, agent_pb2.StatusRequest),
        "Cancel": (calls.cancel, agent_pb2.JobRequest),
    }
    methods: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(_told(call), kind.FromString, _dumped)
        for name, (call, kind) in unary.items()
    }
    methods["Follow"] = grpc.unary_stream_rpc_method_handler(
        _told_stream(calls.follow), agent_pb2.JobRequest.FromString, _dumped
    )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _told(call: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """The call, with an error as gRPC has it."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return call(request)
        except (GritError, OSError) as error:
            _abort(context, error)

    return answer


def _told_stream(call: Callable[[Any], Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from call(request)
        except (GritError, OSError) as error:
            _abort(context, error)

    return answer


def _abort(context: grpc.ServicerContext, error: GritError | OSError) -> None:
    codes = (code for kind, code in _CODES.items() if isinstance(error, kind))
    context.set_trailing_metadata(((REASON, reason(error)),))
    context.abort(next(codes, grpc.StatusCode.INTERNAL), one_line(error))


def _dumped(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _url(url: str) -> str:
    if not url.startswith(_URLS):
        raise InvalidArgumentError(
            f"{url[:200]!r} is neither a store nor a peer: expected one of {', '.join(_URLS)} first"
        )
    return url


def _message(job: Job) -> agent_pb2.Job:
    fields = agent_pb2.Job.DESCRIPTOR.fields_by_name
    return agent_pb2.Job(**{name: getattr(job, name) for name in fields})
