"""Answers as the agents of many nodes do, which this machine has no room for.

In their own messages and over their own TLS, each at an address of its own. Taking a checkpoint
takes TAKE_S, bringing one BRING_S, a restore RESTORE_S after that; nothing is dumped or moved.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import grpc

from grit_runtime.manager.agents import SERVICE
from grit_runtime.model import compatibility
from grit_runtime.model.manifest import Node
from grit_runtime.proto import agent_pb2

TAKE_S, BRING_S, RESTORE_S = 1.0, 1.0, 0.2
CONTAINER = "main"

_FACTS = compatibility.Facts(Node("6.18", "x86_64", (), "4.2.1", "1.3.6", "2.1.9", ""), ())
_SHA256 = "5" * 64  # of every checkpoint


class Agent:
    """Answers as the agent of one node does."""

    def __init__(self, node: str, asked: dict[str, float]) -> None:
        self.node = node
        self._asked = asked
        self._here: dict[str, float] = {}  # checkpoints, and since when or from when

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        calls: dict[str, tuple[Any, Any]] = {
            "Checkpoint": (self.take, agent_pb2.CheckpointRequest),
            "Prepare": (self.bring, agent_pb2.PrepareRequest),
            "Status": (self.status, agent_pb2.StatusRequest),
            "Facts": (self.facts, agent_pb2.FactsRequest),
            "Describe": (self.describe, agent_pb2.CheckpointRef),
            "Resume": (self.resume, agent_pb2.ResumeRequest),
            "Remove": (self.remove, agent_pb2.CheckpointRef),
        }
        streams: dict[str, tuple[Any, Any]] = {
            "Follow": (self.follow, agent_pb2.JobRequest),
            "Records": (self.records, agent_pb2.RecordsRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(call, request.FromString, _bytes)
            for name, (call, request) in calls.items()
        } | {
            name: grpc.unary_stream_rpc_method_handler(call, request.FromString, _bytes)
            for name, (call, request) in streams.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def take(self, request: agent_pb2.CheckpointRequest, _: object) -> agent_pb2.Job:
        self._asked[request.name] = time.time()
        self._here[request.name] = time.monotonic() + TAKE_S
        return self._job(request.name)

    async def bring(self, request: agent_pb2.PrepareRequest, _: object) -> agent_pb2.Job:
        self._here[request.name] = time.monotonic() + BRING_S
        return self._job(request.name)

    async def follow(self, request: agent_pb2.JobRequest, _: object) -> Any:
        yield self._job(request.id)
        await asyncio.sleep(max(0.0, self._here[request.id] - time.monotonic()))
        yield self._job(request.id)

    async def status(self, *_: object) -> agent_pb2.StatusReply:
        return agent_pb2.StatusReply()

    async def facts(self, *_: object) -> agent_pb2.FactsReply:
        return agent_pb2.FactsReply(facts=compatibility.dump_facts(_FACTS), node=self.node)

    async def describe(
        self, request: agent_pb2.CheckpointRef, context: grpc.aio.ServicerContext[Any, Any]
    ) -> agent_pb2.Description:
        if request.name not in self._here:
            context.set_trailing_metadata((("grit-reason", "NotFound"),))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no checkpoint {request.name}")
        return agent_pb2.Description(
            sha256=_SHA256,
            size_bytes=64 << 20,
            containers=[CONTAINER],
            needs=compatibility.dump_facts(_FACTS),
        )

    async def resume(self, *_: object) -> agent_pb2.ResumeReply:
        return agent_pb2.ResumeReply()

    async def remove(self, request: agent_pb2.CheckpointRef, _: object) -> agent_pb2.RemoveReply:
        self._here.pop(request.name, None)
        return agent_pb2.RemoveReply()

    async def records(self, request: agent_pb2.RecordsRequest, _: object) -> Any:
        yield agent_pb2.RecordsReply(records="[]")
        await asyncio.sleep(RESTORE_S)
        restored = {
            "container": CONTAINER,
            "pod": request.pod_uid,
            "outcome": "restored",
            "manifest_sha256": _SHA256,
            "reason": "",
            "error": "",
        }
        yield agent_pb2.RecordsReply(records=json.dumps([restored]))
        await asyncio.sleep(3600)  # as *follow* says

    def _job(self, name: str) -> agent_pb2.Job:
        is_done = time.monotonic() >= self._here[name]
        now = datetime.now(UTC).isoformat()
        return agent_pb2.Job(
            id=name, state="done" if is_done else "running", begun=now, ended=now if is_done else ""
        )


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
