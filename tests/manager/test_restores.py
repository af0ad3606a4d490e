"""What a Restore does about its pod, and about one that it has missed."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import pytest
from kopf._core.engines import posting

from grit_runtime.manager import agents, api, patience, pods, restores, targets
from grit_runtime.manager.nodes import Nodes
from grit_runtime.manager.world import World
from grit_runtime.model import pod_template
from tests.manager.api_server import NAMESPACE, Server, serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grit_runtime.manager.cluster import Cluster, Object

DIGEST = "sha256:1"
POD_SPEC = {"runtimeClassName": pods.RUNTIME_CLASS, "containers": [{"name": "main", "image": "a"}]}


def world(cluster: Cluster, token: Path) -> World:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    posting.settings_var.set(settings)
    token.write_text("token")
    access = agents.Access("grit-system", 1, b"", str(token))
    return World(cluster, agents.Agents(cluster, access), Nodes(cluster), "/mnt/grit-agent")


def pod(name: str, **meta: Any) -> Object:
    meta |= {"name": name, "namespace": NAMESPACE, "uid": f"{name}-uid"}
    return {"metadata": meta, "spec": {**POD_SPEC, "nodeName": "node-a"}, "status": {}}


def checkpoint(server: Server) -> None:
    status = {
        "phase": api.CHECKPOINTED,
        "nodeName": "node-b",
        "podUID": "gone",
        "podSpecHash": pod_template.digest(pod("source")),
        "manifestDigest": DIGEST,
    }
    meta = {"name": "nightly", "namespace": NAMESPACE}
    server.put("checkpoints", {"metadata": meta, "spec": {"podName": "a"}, "status": status})


def restore(server: Server, **meta: Any) -> None:
    meta |= {"name": "back", "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
    spec = {"checkpointName": "nightly", "selector": {"matchLabels": {"app": "trainer"}}}
    server.put("restores", {"kind": "Restore", "metadata": meta, "spec": spec})


@pytest.fixture
def server() -> Server:
    server = Server()
    checkpoint(server)
    return server


def agent(server: Server) -> None:
    """The node has one that is ready, where nobody listens."""
    meta = {"name": "agent", "namespace": "grit-system"}
    meta |= {"labels": {"app.kubernetes.io/name": "grit-agent"}}  # type: ignore[dict-item]
    ready = {"type": "Ready", "status": "True"}
    status = {"conditions": [ready], "podIP": "127.0.0.1"}
    spec = {"nodeName": "node-a", "containers": [{"name": "agent", "image": "grit"}]}
    server.put("pods", {"metadata": meta, "spec": spec, "status": status})


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.02)


def test_an_agent_that_is_not_ready_yet_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_PAUSES_S", (0.5, 0.1))
    restore(server)
    labels = {targets.LABEL: targets.label("back")}
    server.put("pods", pod("next", labels=labels, annotations={pods.MANIFEST_DIGEST: DIGEST}))

    async def scenario() -> Object:
        async with serving(server) as (_, cluster):
            running = asyncio.ensure_future(
                restores.run(world(cluster, tmp_path / "token"), NAMESPACE, "back")
            )
            await until(lambda: server.get("restores", "back").get("status", {}).get("nodeName"))
            agent(server)
            return await running

    status = asyncio.run(scenario())
    assert status["message"].startswith("the agent of node node-a does not answer at 127.0.0.1")


AUTO = {"apiVersion": api.API_VERSION, "kind": "Checkpoint", "name": "nightly", "uid": "uid-1"}
FORGED = [
    {**AUTO, "uid": "another"},
    {**AUTO, "kind": "Migration"},
    {**AUTO, "kind": "Node"},
    {**AUTO, "apiVersion": "example.com/v1"},
    {**AUTO, "controller": False},
]


@pytest.mark.parametrize("parent", [AUTO, *FORGED], ids=str)
def test_a_pod_that_was_missed_is_deleted_for_a_move_that_is_there_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: dict[str, Any]
) -> None:
    monkeypatch.setattr(restores, "_LOOK_S", 0.02)
    spec = {"autoMigration": True}
    server.change("checkpoints", "nightly", {"metadata": {"uid": "uid-1"}, "spec": spec})
    restore(server, ownerReferences=[{"controller": True, **parent}])
    server.put("pods", pod("next", labels={"app": "trainer"}))

    def told() -> str:
        return str(server.get("restores", "back").get("status", {}).get("message", ""))

    async def scenario() -> None:
        async with serving(server) as (_, cluster):
            running = asyncio.ensure_future(
                restores.run(world(cluster, tmp_path / "token"), NAMESPACE, "back")
            )
            await until(lambda: "while the webhook did not answer" in told())
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
    is_deleted = parent is AUTO
    assert bool(server.of("pods")) != is_deleted
    assert ("its owner makes another" if is_deleted else "starts from its image") in told()
