"""A pod that agents move: asked on the first node's socket, restored on the second."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from grit_runtime.agent import client, service
from grit_runtime.proto import agent_pb2
from integration.pods import checkpoints, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

DIRECTORY = "/etc/grit/agent"
READY_TIMEOUT_S = 30


def start(node: Node, stack: ExitStack) -> None:
    """Run the node's agent until the *stack* ends, and wait until it says that it is ready."""
    path = node.path(Path("/run/agent-notify"))
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(READY_TIMEOUT_S)
        environment = "NOTIFY_SOCKET=/run/agent-notify"
        agent = node.popen(["env", environment, "grit", "agent", "run"])
        stack.callback(agent.wait)
        assert told.recv(100) == b"READY=1"
    stack.callback(os.kill, node.command_pid(agent), signal.SIGTERM)


@pytest.fixture(scope="module")
def agents(nodes: Nodes) -> Iterator[None]:
    """Both nodes have agents that trust each other and find each other by name."""
    names = {"node-a": nodes.a, "node-b": nodes.b}
    hosts = "".join(f"{node.connection.address} {name}\n" for name, node in names.items())
    with ExitStack() as stack:
        for name, node in names.items():
            with node.path(Path("/etc/hosts")).open("a") as file:
                file.write(hosts)
            directory = node.path(Path(DIRECTORY))
            directory.mkdir(parents=True, exist_ok=True)
            if node is nodes.b:
                for file_name in ("ca.pem", "ca.key"):
                    source = nodes.a.path(Path(DIRECTORY)) / file_name
                    (directory / file_name).write_bytes(source.read_bytes())
            node.run(["grit", "agent", "init", "--node", name])
            start(node, stack)
        yield


def asked(node: Node, method: str, request: object) -> agent_pb2.Job:
    """A job on the node, once it has ended."""
    path = str(node.path(Path(service.SOCKET)))
    with grpc.insecure_channel(f"unix:{path}") as channel:
        call = channel.unary_unary(
            f"/{service.SERVICE}/{method}",
            type(request).SerializeToString,  # type: ignore[attr-defined]
            agent_pb2.Job.FromString,
        )
        job: agent_pb2.Job = call(request, timeout=10)
    *_, last = client.followed(job.id, path)
    return last


@pytest.mark.usefixtures("agents")
def test_a_pod_is_taken_carried_and_restored_by_agents(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("by-agent", ballast_mib=64))
    workload.wait_for_count(source, 10)
    request = agent_pb2.CheckpointRequest(
        target="default/by-agent", name="carried", after="frozen", push="peer://node-b"
    )
    job = asked(nodes.a, "Checkpoint", request)
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


@pytest.mark.usefixtures("agents")
def test_a_checkpoint_that_is_cancelled_leaves_the_pod_as_it_was(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("cancelled", ballast_mib=64))
    workload.wait_for_count(pod, 5)
    path = str(nodes.a.path(Path(service.SOCKET)))
    with grpc.insecure_channel(f"unix:{path}") as channel:
        call = channel.unary_unary(
            f"/{service.SERVICE}/Checkpoint",
            agent_pb2.CheckpointRequest.SerializeToString,
            agent_pb2.Job.FromString,
        )
        request = agent_pb2.CheckpointRequest(target="default/cancelled", after="running")
        job = call(request, timeout=10)
    *_, last = client.cancelled(job.id, path)
    assert last.state == "cancelled"
    assert not checkpoints.directory(nodes.a, "cancelled").exists()
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    workload.wait_for_count(pod, 20)
