"""What a manager finds when it takes over: a target that is verified is not undone."""

from __future__ import annotations

import itertools
from typing import Any

import kopf
import pytest
from kopf._core.engines import posting

from grit_runtime.manager import api, checkpoints, migrations, pods
from grit_runtime.manager.agents import Access, Agents
from grit_runtime.manager.nodes import Nodes
from grit_runtime.manager.world import World
from tests.manager.api_server import NAMESPACE, Server, asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Cluster, Object

RUNS = {"checkpoints": checkpoints.run, "migrations": migrations.run}


def pod(name: str) -> Object:
    meta = {"name": name, "namespace": NAMESPACE, "uid": f"{name}-uid"}
    spec = {"runtimeClassName": pods.RUNTIME_CLASS, "nodeName": "node-a", "containers": []}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Running"}}


def moving(server: Server, plural: str) -> None:
    """A pod's move that has come to its end, of which the object does not tell yet; it was made
    long ago, and had a minute."""
    source = pod("trainer")
    server.put("pods", source)
    server.put("pods", pod("target"))
    template = {"metadata": {}, "spec": source["spec"]}
    sealed: dict[str, Any] = {
        "phase": api.SUBMITTING if plural == "checkpoints" else api.CHECKPOINTED,
        "nodeName": "node-a",
        "podName": "trainer",
        "podUID": "trainer-uid",
        "manifestDigest": "sha256:1234",
        "podTemplate": template,
    }
    meta = {"name": "move", "namespace": NAMESPACE, "uid": "move-uid"}
    spec = {"podName": "trainer", "timeoutSeconds": 60}
    auto = {"autoMigration": True} if plural == "checkpoints" else {}
    one = {"kind": "Checkpoint", "metadata": dict(meta), "spec": spec | auto, "status": sealed}
    server.put("checkpoints", one)
    if plural == "migrations":
        status = {
            "phase": api.RESTORING,
            "checkpointName": "move",
            "sourceNode": "node-a",
            "sourcePod": "trainer",
            "sourcePodUID": "trainer-uid",
        }
        server.put(
            plural, {"kind": "Migration", "metadata": dict(meta), "spec": spec, "status": status}
        )
    restored = {
        "phase": api.RESTORED,
        "nodeName": "node-b",
        "targetPod": "target",
        "targetPodUID": "target-uid",
    }
    own = {"name": "move", "namespace": NAMESPACE, "ownerReferences": [{"uid": "move-uid"}]}
    server.put(
        "restores", {"metadata": own, "spec": {"checkpointName": "move"}, "status": restored}
    )


@pytest.mark.parametrize("is_late", [False, True], ids=["known", "heard of late"])
@pytest.mark.parametrize("plural", ["checkpoints", "migrations"])
def test_a_verified_target_is_kept_though_its_time_has_passed(
    plural: str,
    is_late: bool,  # noqa: FBT001
) -> None:
    server = Server()
    moving(server, plural)
    if is_late:  # it is verified when the time is over already
        server.change("restores", "move", {"status": {"phase": api.RESTORING}})
        looks = itertools.count(1)
        last = {"checkpoints": 2, "migrations": 3}[plural]

        def verify(method: str, asked_plural: str) -> None:
            if (method, asked_plural) == ("GET", plural) and next(looks) == last:
                server.change("restores", "move", {"status": {"phase": api.RESTORED}})

        server.before = verify

    async def run(cluster: Cluster) -> Object:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        posting.settings_var.set(settings)
        agents = Agents(cluster, Access("grit-system", 1, b"", ""))  # there are none
        world = World(cluster, agents, Nodes(cluster), "/mnt/grit-agent")
        return await RUNS[plural](world, NAMESPACE, "move")

    status = asked(server, run)
    assert status["phase"] in (api.SUBMITTED, api.SUCCEEDED), status
    assert [one["metadata"]["name"] for one in server.of("pods")] == ["target"]
