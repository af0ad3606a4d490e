"""The doors of the agent's API: a unix socket for root alone, and a port for the cluster.

Whoever comes by the port shows a token, and finds the node's certificate.
"""

from __future__ import annotations

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import grpc

from grit_runtime import paths
from grit_runtime.agent import access, identity
from grit_runtime.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    GritError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    one_line,
    reason,
)
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from grit_runtime.agent.access import Access
    from grit_runtime.agent.calls import Calls
    from grit_runtime.agent.jobs import Jobs

    Admit = Callable[[str, Any, grpc.ServicerContext], None]

SOCKET = f"{paths.RUN_DIR}/agent.sock"
SERVICE = "grit.agent.v1.Agent"
REASON = "grit-reason"  # of an error, in the trailing metadata

_THREADS = 64  # a follower takes one; who finds none is told so
_STOP_S = 1.0
_PING_MS = 5_000

_CODES = {
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
}


@contextmanager
def served(calls: Calls, path: str = SOCKET) -> Iterator[None]:
    """Serve the API at *path*, which is taken over already, while the block runs."""
    server = _server(calls, _anyone)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    try:
        with _running(server):
            yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


@contextmanager
def served_to_cluster(
    calls: Calls, jobs: Jobs, allowed: Access, directory: str, port: int
) -> Iterator[int]:
    """Serve the API at a port while the block runs; which it is, if any would do.

    The certificate is the one that *directory* has when somebody connects.
    """

    def admit(method: str, request: Any, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata() or ())
        kind, _, token = str(metadata.get("authorization", "")).partition(" ")
        wanted = access.needed(method, request, jobs.every())
        allowed.require(token if kind == "Bearer" else "", wanted)

    server = _server(calls, admit)
    try:
        bound = server.add_secure_port(f"[::]:{port}", _credentials(directory))
    except RuntimeError:  # gRPC's, for any failure to bind
        raise FailedPreconditionError(
            f"port {port} cannot be listened at; set agent_api_port to one that is free"
        ) from None
    with _running(server):
        yield bound


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


def _credentials(directory: str) -> grpc.ServerCredentials:
    """Those in *directory*, read anew when the certificate was replaced."""

    def changed() -> tuple[int, int]:
        status = os.stat(f"{directory}/{identity.CERTIFICATE}")
        return status.st_ino, status.st_mtime_ns

    def read() -> grpc.ServerCertificateConfiguration:
        key, certificate = (
            _content(f"{directory}/{name}") for name in (identity.KEY, identity.CERTIFICATE)
        )
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    served = changed()

    def fetch() -> Any:
        nonlocal served
        now = changed()
        if now == served:
            return None
        served = now
        return read()

    return grpc.dynamic_ssl_server_credentials(read(), fetch)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _anyone(_method: str, _request: Any, _context: grpc.ServicerContext) -> None:
    """The socket is for root alone."""


def _server(calls: Calls, admit: Admit) -> grpc.Server:
    server = grpc.server(
        ThreadPoolExecutor(_THREADS),
        options=[
            ("grpc.so_reuseport", 0),
            # A caller may ask so often whether this end still lives.
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
        ],
        maximum_concurrent_rpcs=_THREADS,
    )
    server.add_generic_rpc_handlers([_handlers(calls, admit)])
    return server


@contextmanager
def _running(server: grpc.Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop(_STOP_S).wait()


def _handlers(calls: Calls, admit: Admit) -> grpc.GenericRpcHandler[Any, Any]:
    unary: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "Checkpoint": (calls.checkpoint, agent_pb2.CheckpointRequest),
        "Prepare": (calls.prepare, agent_pb2.PrepareRequest),
        "Push": (calls.push, agent_pb2.PushRequest),
        "Status": (calls.status, agent_pb2.StatusRequest),
        "Cancel": (calls.cancel, agent_pb2.JobRequest),
        "Facts": (calls.facts, agent_pb2.FactsRequest),
        "Describe": (calls.describe, agent_pb2.CheckpointRef),
        "Resume": (calls.resume, agent_pb2.ResumeRequest),
        "Remove": (calls.remove, agent_pb2.RemoveRequest),
    }
    streams: dict[str, tuple[Callable[..., Iterator[Any]], Any]] = {
        "Follow": (calls.follow, agent_pb2.JobRequest),
        "Records": (calls.records, agent_pb2.RecordsRequest),
    }
    methods: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            _told(name, call, admit), kind.FromString, _dumped
        )
        for name, (call, kind) in unary.items()
    }
    methods |= {
        name: grpc.unary_stream_rpc_method_handler(
            _told_stream(name, call, admit), kind.FromString, _dumped
        )
        for name, (call, kind) in streams.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _told(
    name: str, call: Callable[[Any], Any], admit: Admit
) -> Callable[[Any, grpc.ServicerContext], Any]:
    """The call, of who is admitted, with an error as gRPC has it."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            admit(name, request, context)
            return call(request)
        except (GritError, OSError) as error:
            _abort(context, error)

    return answer


def _told_stream(
    name: str, call: Callable[..., Iterator[Any]], admit: Admit
) -> Callable[..., Iterator[Any]]:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            admit(name, request, context)
            yield from call(request, context.is_active)
        except (GritError, OSError) as error:
            _abort(context, error)

    return answer


def _abort(context: grpc.ServicerContext, error: GritError | OSError) -> None:
    codes = (code for kind, code in _CODES.items() if isinstance(error, kind))
    context.set_trailing_metadata(((REASON, reason(error)),))
    context.abort(next(codes, grpc.StatusCode.INTERNAL), one_line(error))


def _dumped(message: Any) -> bytes:
    return bytes(message.SerializeToString())
