"""Calling this node's agent. Blocking; its errors are raised here as they were there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TypeVar

import grpc

from grit_runtime.agent import service
from grit_runtime.errors import DeadlineExceededError, UnavailableError, of_reason
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

Reply = TypeVar("Reply", bound="Message")

_TIMEOUT_S = 30.0


def asked(
    method: str,
    request: Message,
    reply: type[Reply],
    path: str = service.SOCKET,
    timeout_s: float = _TIMEOUT_S,
) -> Reply:
    """The agent's reply to *request*."""
    with _called(path, timeout_s) as channel:
        call = channel.unary_unary(
            f"/{service.SERVICE}/{method}", type(request).SerializeToString, reply.FromString
        )
        answer: Reply = call(request, timeout=timeout_s)
    return answer


def status(path: str = service.SOCKET, timeout_s: float = _TIMEOUT_S) -> list[agent_pb2.Job]:
    """All jobs: those that have ended, then the others; each oldest first."""
    request = agent_pb2.StatusRequest()
    return list(asked("Status", request, agent_pb2.StatusReply, path, timeout_s).jobs)


def cancelled(job_id: str, path: str = service.SOCKET) -> Iterator[agent_pb2.Job]:
    """Have a job stop: the job, until it has ended."""
    asked("Cancel", agent_pb2.JobRequest(id=job_id), agent_pb2.Job, path)
    return followed(job_id, path)


def followed(job_id: str, path: str = service.SOCKET) -> Iterator[agent_pb2.Job]:
    """The job as it is now, and every half second, until it has ended."""
    return streamed("Follow", agent_pb2.JobRequest(id=job_id), agent_pb2.Job, path)


def streamed(
    method: str, request: Message, reply: type[Reply], path: str = service.SOCKET
) -> Iterator[Reply]:
    """The agent's replies to *request*, until it has no more."""
    with _called(path) as channel:
        call = channel.unary_stream(
            f"/{service.SERVICE}/{method}", type(request).SerializeToString, reply.FromString
        )
        yield from call(request)


@contextmanager
def _called(path: str, timeout_s: float = _TIMEOUT_S) -> Iterator[grpc.Channel]:
    try:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            yield channel
    except grpc.RpcError as error:
        for datum in error.trailing_metadata() or ():
            if datum.key == service.REASON:
                raise of_reason(str(datum.value))(error.details()) from None
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineExceededError(
                f"the agent at {path} has not answered for {timeout_s:g} s; look at its log"
            ) from None
        raise UnavailableError(
            f"no agent answers at {path}: {error.details()}; is grit-agent.service running here?"
        ) from None
