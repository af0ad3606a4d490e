"""What becomes of nodes is answered, each by itself, whatever else is waited for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from grit_runtime.manager import api, evictions, lost_nodes, node_answers, pods
from grit_runtime.manager.agents import Access, Agents
from grit_runtime.manager.nodes import Nodes
from grit_runtime.manager.world import World
from tests.manager import api_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.manager.api_server import Server

SPOT = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
ASKS = {lost_nodes.ON_NODE_LOSS: lost_nodes.RESTORE}
STAYS = {evictions.ON_EVICTION: evictions.LET_GO}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_answers, "_AGAIN_S", 0.1)


def node(ready: str = "True", *taints: dict[str, str], **annotations: str) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready}]
    meta = {"name": "node-a", "uid": "node-uid", "annotations": annotations}
    return {"metadata": meta, "spec": {"taints": [*taints]}, "status": {"conditions": conditions}}


FENCED = {"manager.grit.dev/fenced": "true"}


def put_pod(server: Server, name: str, **annotations: str) -> None:
    """A StatefulSet's, which has a checkpoint in a store."""
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "set", "uid": "set-uid"}
    meta = {
        "name": name,
        "namespace": "default",
        "uid": f"{name}-uid",
        "annotations": {**ASKS, **annotations},
        "ownerReferences": [{**owner, "controller": True}],
    }
    spec = {"runtimeClassName": pods.RUNTIME_CLASS, "nodeName": "node-a", "containers": []}
    server.put("pods", {"metadata": meta, "spec": spec, "status": {"phase": "Running"}})
    status = {
        "phase": api.CHECKPOINTED,
        "podName": name,
        "podUID": f"{name}-uid",
        "completionTime": "2026-01-01T00:00:00Z",
    }
    server.put(
        "checkpoints",
        {
            "metadata": {"name": f"of-{name}", "namespace": "default"},
            "spec": {"podName": name, "storage": {"url": "s3://bucket/kept"}},
            "status": status,
        },
    )


@asynccontextmanager
async def keeping(*nodes: dict[str, Any]) -> AsyncIterator[Server]:
    """A manager leads, which has begun to when the nodes and their pods were there."""
    async with api_server.serving() as (server, cluster):
        for one in nodes:
            server.put("nodes", one)
        put_pod(server, "trainer")
        put_pod(server, "worker", **STAYS)
        agents = Agents(cluster, Access("grit-system", 9466, b"", ""))
        world = World(cluster, agents, Nodes(cluster), "/mnt/grit-agent")
        task = asyncio.ensure_future(node_answers.keep(world))
        try:
            yield server
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.02)


def restored(server: Server) -> set[str]:
    return {one["spec"]["checkpointName"] for one in server.of("restores")}


def test_pods_of_a_node_that_was_deleted_while_nobody_led_go_on() -> None:
    async def keep() -> None:
        async with keeping() as server:
            await until(lambda: restored(server) == {"of-trainer", "of-worker"})
            await until(lambda: not server.of("pods"))

    asyncio.run(keep())


def test_a_node_that_is_lost_while_its_notice_is_answered_is_answered_too() -> None:
    async def keep() -> None:
        async with keeping(node("True", SPOT)) as server:
            await until(lambda: server.of("migrations"))  # which nobody ends
            server.put("nodes", node("Unknown", SPOT, **FENCED))
            await until(lambda: restored(server) == {"of-worker"})
            # What is being moved may live on elsewhere, and must not twice.
            why = "pod default/trainer does not go on: it is being moved by Migration trainer-"
            await until(lambda: any(why in one["message"] for one in server.of("events")))
            assert restored(server) == {"of-worker"}
            (migration,) = server.of("migrations")
            server.put("migrations", {**migration, "status": {"phase": api.FAILED}})
            await until(lambda: restored(server) == {"of-trainer", "of-worker"})

    asyncio.run(keep())


def test_what_is_waited_for_is_told_once_until_it_changes() -> None:
    async def keep() -> None:
        async with keeping(node("Unknown")) as server:
            await until(lambda: server.of("events"))
            await asyncio.sleep(0.5)
            (event,) = server.of("events")
            assert event["message"].startswith("2 pods go on elsewhere as soon as it is sure")
            assert not server.of("restores")
            server.put("nodes", node("Unknown", **FENCED))
            await until(lambda: restored(server) == {"of-trainer", "of-worker"})

    asyncio.run(keep())


def test_a_node_that_is_deleted_is_answered() -> None:
    async def keep() -> None:
        async with keeping(node("Unknown")) as server:
            await until(lambda: server.of("events"))
            server.remove("nodes", "", "node-a")
            await until(lambda: restored(server) == {"of-trainer", "of-worker"})

    asyncio.run(keep())
