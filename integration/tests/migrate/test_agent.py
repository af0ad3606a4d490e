"""A pod that agents move: asked on the first node's socket, restored on the second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grit_runtime.agent import client
from grit_runtime.proto import agent_pb2
from integration.pods import agents, checkpoints, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")


@pytest.fixture(scope="module")
def joined(nodes: Nodes) -> Iterator[None]:
    """Both nodes have agents."""
    with agents.running(nodes):
        yield


@pytest.mark.usefixtures("joined")
def test_a_pod_is_taken_carried_and_restored_by_agents(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("by-agent", ballast_mib=64))
    workload.wait_for_count(source, 10)
    request = agent_pb2.CheckpointRequest(
        target="default/by-agent", name="carried", after="frozen", push="peer://node-b"
    )
    job = agents.asked(nodes.a, "Checkpoint", request)
    assert (job.state, job.phase, job.text) == ("done", "push", "")
    carried = (checkpoints.directory(nodes.b, "carried") / "counter/container.log").read_text()

    annotations = (("grit.dev/restore-name", "carried"),)
    target = run_pod(nodes.b, workload.counter_pod("from-agent", annotations=annotations))
    workload.assert_goes_on_from(target, len(carried.splitlines()), node=nodes.b)
    (there,) = json.loads(nodes.b.run(["grit", "agent", "status", "--json"]).stdout)
    assert (there["kind"], there["state"], there["url"]) == (
        *("prepare", "done"),
        "peer://node-a:9465",
    )
    assert len(list(nodes.b.path(Path("/run/grit/verified")).iterdir())) == 1


@pytest.mark.usefixtures("joined")
def test_a_checkpoint_that_is_cancelled_leaves_the_pod_as_it_was(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("cancelled", ballast_mib=64))
    workload.wait_for_count(pod, 5)
    request = agent_pb2.CheckpointRequest(target="default/cancelled", after="running")
    job = agents.begun(nodes.a, "Checkpoint", request)
    *_, last = client.cancelled(job.id, agents.socket_of(nodes.a))
    assert last.state == "cancelled"
    assert not checkpoints.directory(nodes.a, "cancelled").exists()
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    workload.wait_for_count(pod, 20)
