"""A Checkpoint that is deleted takes its data with it."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from grit_runtime import certificates
from grit_runtime.manager import api, checkpoints, patience
from grit_runtime.manager.agents import LABEL, SERVICE, Access, Agents
from grit_runtime.manager.nodes import Nodes
from grit_runtime.manager.world import World
from grit_runtime.proto import agent_pb2
from tests.manager.api_server import NAMESPACE, Server, serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

BUSY = grpc.StatusCode.FAILED_PRECONDITION, "FailedPrecondition"
SLOW = grpc.StatusCode.DEADLINE_EXCEEDED, ""
AWAY = grpc.StatusCode.UNAVAILABLE, ""


class Agent:
    """An agent that is asked to remove checkpoints, and at first answers with errors."""

    def __init__(self, *errors: tuple[grpc.StatusCode, str]) -> None:
        self._errors = list(errors)
        self.removed: list[agent_pb2.RemoveRequest] = []

    async def remove(
        self, request: agent_pb2.RemoveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> agent_pb2.RemoveReply:
        if self._errors:
            code, reason = self._errors.pop(0)
            await context.abort(code, "not now", (("grit-reason", reason),) if reason else ())
        self.removed.append(request)
        return agent_pb2.RemoveReply()

    async def status(
        self, _request: agent_pb2.StatusRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> agent_pb2.StatusReply:
        return agent_pb2.StatusReply()

    async def serve(self, ca: tuple[bytes, bytes]) -> tuple[grpc.aio.Server, int]:
        """It as a server of node-a on loopback, and its port."""
        handlers = {
            "Remove": grpc.unary_unary_rpc_method_handler(
                self.remove,
                agent_pb2.RemoveRequest.FromString,
                agent_pb2.RemoveReply.SerializeToString,
            ),
            "Status": grpc.unary_unary_rpc_method_handler(
                self.status,
                agent_pb2.StatusRequest.FromString,
                agent_pb2.StatusReply.SerializeToString,
            ),
        }
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        chain, key = certificates.new_signed(["node-a"], *ca, days=1)
        credentials = grpc.ssl_server_credentials([(key, chain)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        return server, port


def forgotten(
    agent: Agent,
    tmp_path: Path,
    *,
    pod: dict[str, str] | None = None,
    uid: str = "nightly-uid",
    ready_after_s: float = 0.0,
) -> None:
    """Delete the Checkpoint of this uid; its source's name has a *pod* if that has metadata."""
    (tmp_path / "token").write_text("token")

    async def scenario() -> None:
        async with serving() as (server, cluster):
            ca = certificates.new_ca("grit")
            process, port = await agent.serve(ca)
            made(server)
            asyncio.get_running_loop().call_later(ready_after_s, has_agent, server)
            if pod:
                meta = {"name": "trainer", "namespace": NAMESPACE, **pod}
                server.put("pods", {"metadata": meta, "spec": {}, "status": {}})
            access = Access("grit-system", port, ca[0], str(tmp_path / "token"))
            world = World(cluster, Agents(cluster, access), Nodes(cluster), "/mnt/grit-agent")
            await checkpoints.forget(world, NAMESPACE, "nightly", uid)
            await process.stop(None)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "errors", [(), (BUSY, BUSY), (SLOW,), (AWAY, BUSY, SLOW)], ids=["", "busy", "slow", "both"]
)
def test_what_is_in_the_way_of_a_removal_for_a_while_does_not_leave_it_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: tuple[tuple[grpc.StatusCode, str], ...]
) -> None:
    monkeypatch.setattr(patience, "_PAUSES_S", (0.1, 0.1, 0.1))
    monkeypatch.setattr(patience, "_BUSY_PAUSE_S", 0.1)
    agent = Agent(*errors)
    forgotten(agent, tmp_path)
    assert [(one.namespace, one.name) for one in agent.removed] == [(NAMESPACE, "nightly")]


ENDING = {"uid": "trainer-uid", "deletionTimestamp": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        ({}, "trainer-uid"),
        ({"uid": "another-uid"}, "trainer-uid"),
        (ENDING, "trainer-uid"),
        ({"uid": "trainer-uid"}, ""),
    ],
    ids=["gone", "another", "ending", "there"],
)
def test_a_node_hears_that_the_pod_is_deleted(
    tmp_path: Path, pod: dict[str, str], told: str
) -> None:
    agent = Agent()
    forgotten(agent, tmp_path, pod=pod)
    assert [one.deleted_pod_uid for one in agent.removed] == [told]


def test_an_agent_that_is_just_starting_anew_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_PAUSES_S", (0.2,) * 10)
    agent = Agent()
    forgotten(agent, tmp_path, ready_after_s=0.5)
    assert len(agent.removed) == 1


def test_a_successor_of_the_name_keeps_its_data(tmp_path: Path) -> None:
    agent = Agent()
    forgotten(agent, tmp_path, uid="of an earlier one")
    assert agent.removed == []


def made(server: Server) -> None:
    """A Checkpoint on node-a, which is not lost."""
    healthy = {"conditions": [{"type": "Ready", "status": "True"}]}
    server.put("nodes", {"metadata": {"name": "node-a"}, "status": healthy})
    status = {"phase": api.CHECKPOINTED, "nodeName": "node-a", "podName": "trainer"}
    status["podUID"] = "trainer-uid"
    meta = {"name": "nightly", "namespace": NAMESPACE, "uid": "nightly-uid"}
    meta |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
    spec = {"podName": "trainer"}
    server.put(
        "checkpoints", {"kind": "Checkpoint", "metadata": meta, "spec": spec, "status": status}
    )


def has_agent(server: Server) -> None:
    """The node has one that is ready."""
    label, value = LABEL.split("=")
    meta: dict[str, Any] = {"name": "agent", "namespace": "grit-system", "labels": {label: value}}
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "podIP": "127.0.0.1"}
    spec = {"nodeName": "node-a", "containers": [{"name": "agent", "image": "grit"}]}
    server.put("pods", {"metadata": meta, "spec": spec, "status": ready})
