"""The agents of the nodes, as the manager calls them: gRPC over TLS, with its own token."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from grit_runtime.errors import (
    INTERRUPTED,
    CancelledError,
    DeadlineExceededError,
    GritError,
    PeerError,
    UnavailableError,
    of_reason,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import names
from grit_runtime.proto import agent_pb2
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from google.protobuf.message import Message

    from grit_runtime.manager.cluster import Cluster, Object

SERVICE = "grit.agent.v1.Agent"
LABEL = f"app.kubernetes.io/name={names.AGENT}"

_REASON = "grit-reason"
_TIMEOUT_S = 20.0
# A stream may be silent for long: whether the other end still lives is asked meanwhile.
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_DISTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # OpenSSL's word, in the details
_KEPT_S = 5.0  # a connection that nobody uses


class Access(NamedTuple):
    """How agents are reached."""

    namespace: str  # theirs
    port: int
    ca_pem: bytes
    token_path: str  # of a ServiceAccount's token for the audience grit-agent


class _Connection:
    """To one agent, and how many calls go over it now."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0


class Connections:
    """One to each agent that is called, until it is not for a while: each begins with TLS."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._open: dict[tuple[str, str], _Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def to(self, node: str, address: str) -> AsyncIterator[tuple[grpc.aio.Channel, Any]]:
        """The channel to the agent of *node*, and the metadata of a call."""
        key = node, address
        connection = self._open.get(key)
        if connection is None:
            connection = self._open[key] = _Connection(self._dialled(*key))
        token = Path(self._access.token_path).read_text().strip()
        connection.calls += 1
        try:
            yield connection.channel, (("authorization", f"Bearer {token}"),)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and self._open.get(key) is connection:
                del self._open[key]  # the next call dials at once; this one would wait to do so
            raise
        finally:
            connection.calls -= 1
            asyncio.get_running_loop().call_later(_KEPT_S, self._let_go, key, connection)

    def _dialled(self, node: str, address: str) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self._access.ca_pem)
        options = [("grpc.ssl_target_name_override", node), *_KEEPALIVE]
        return grpc.aio.secure_channel(f"{address}:{self._access.port}", credentials, options)

    def _let_go(self, key: tuple[str, str], connection: _Connection) -> None:
        if connection.calls:
            return
        if self._open.get(key) is connection:
            del self._open[key]
        task = asyncio.ensure_future(connection.channel.close(None))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class Agents:
    """The agents of a cluster."""

    def __init__(self, cluster: Cluster, access: Access) -> None:
        self._cluster = cluster
        self._access = access
        self._connections = Connections(access)
        self._ready: dict[str, Agent] = {}

    async def watched(self) -> AsyncIterator[dict[str, Agent]]:
        """All agents that are ready, by their pods' uids: now, and whenever that changes."""
        namespace = self._access.namespace
        async for pods in self._cluster.watched(kube.PODS, namespace, labels=LABEL):
            ready = [pod for pod in pods.values() if _is_ready(pod)]
            self._ready = {pod["metadata"]["uid"]: self._of(pod) for pod in ready}
            yield self._ready

    async def any(self) -> Agent:
        """An agent that is ready. UnavailableError if none is."""
        return await self._first("no node has an agent that is ready")

    async def at(self, node: str) -> Agent:
        """The agent of *node*. UnavailableError if it has none that is ready."""
        for agent in self._ready.values():
            if agent.node == node:
                return agent
        # What is watched is behind, or nothing is.
        return await self._first(
            f"node {node} has no agent that is ready", fields=f"spec.nodeName={node}"
        )

    async def _first(self, none: str, *, fields: str = "") -> Agent:
        namespace = self._access.namespace
        for pod in await self._cluster.every(kube.PODS, namespace, labels=LABEL, fields=fields):
            if _is_ready(pod):
                return self._of(pod)
        where = f"the pods of namespace {namespace}{' there' if fields else ''}"
        raise UnavailableError(f"{none}; look at {where}")

    def _of(self, pod: Object) -> Agent:
        (container,) = pod["spec"]["containers"]
        return Agent(
            pod["spec"]["nodeName"], pod["status"]["podIP"], container["image"], self._connections
        )


class Agent:
    """The agent of one node. Errors are raised here as they were there."""

    def __init__(self, node: str, address: str, image: str, connections: Connections) -> None:
        self.node = node
        self.address = address
        self.image = image
        self._connections = connections

    async def ask(self, method: str, request: Message, reply: Any) -> Any:
        """The agent's *reply*, which is the class of it, to *request*."""
        async with self._called() as (channel, metadata):
            call = channel.unary_unary(
                f"/{SERVICE}/{method}", type(request).SerializeToString, reply.FromString
            )
            return await call(request, timeout=_TIMEOUT_S, metadata=metadata)

    async def stream(self, method: str, request: Message, reply: Any) -> AsyncIterator[Any]:
        """The agent's replies to *request*, for as long as it has any."""
        async with self._called() as (channel, metadata):
            call = channel.unary_stream(
                f"/{SERVICE}/{method}", type(request).SerializeToString, reply.FromString
            )
            async for one in call(request, metadata=metadata):
                yield one

    async def records(self, pod_uid: str) -> list[dict[str, Any]]:
        """What became of the checkpoints and restores of a pod, oldest first."""
        request = agent_pb2.RecordsRequest(pod_uid=pod_uid)
        found: list[dict[str, Any]] = []
        async for reply in self.stream("Records", request, agent_pb2.RecordsReply):
            found = json.loads(reply.records)
        return found

    async def followed(self, job: agent_pb2.Job) -> AsyncIterator[agent_pb2.Job]:
        """A job, until it is done. The error that it has ended with, if it has not gone well."""
        last = job
        if not last.ended:
            request = agent_pb2.JobRequest(id=job.id)
            async for last in self.stream("Follow", request, agent_pb2.Job):
                yield last
        if last.state == "cancelled":
            raise CancelledError(f"job {last.id} on node {self.node} was cancelled")
        if last.reason == INTERRUPTED:
            raise UnavailableError(f"node {self.node}: {last.text}")
        if last.state == "failed":
            kind = of_reason(last.reason) if last.reason else GritError
            raise kind(f"node {self.node}: {last.text}")

    @asynccontextmanager
    async def _called(self) -> AsyncIterator[tuple[grpc.aio.Channel, Any]]:
        try:
            async with self._connections.to(self.node, self.address) as called:
                yield called
        except grpc.aio.AioRpcError as error:
            raise self._told(error) from None

    def _told(self, error: grpc.aio.AioRpcError) -> GritError:
        metadata: Any = error.trailing_metadata()  # not the type that the stubs have
        if metadata and (why := metadata.get(_REASON)):
            return of_reason(str(why))(f"node {self.node}: {error.details()}")
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError(
                f"the agent of node {self.node} has not answered for {_TIMEOUT_S:g} s; look at it"
            )
        details = error.details() or ""
        if _DISTRUSTED in details:
            why = details.partition(f"{_DISTRUSTED}: ")[2].strip() or "it is not of this CA"
            return PeerError(
                f"the certificate of the agent of node {self.node} is not valid: {why}; delete its "
                "pod, and it gets another"
            )
        return UnavailableError(
            f"the agent of node {self.node} does not answer at {self.address}: {details}"
        )


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"] and "podIP" in pod["status"]
