"""The agents as pods of a cluster: what their manifest allows is enough to move another pod."""

from __future__ import annotations

import json
import time
from typing import NamedTuple

import pytest

from grit_runtime.model import compatibility
from grit_runtime.proto import agent_pb2
from integration.kubernetes import agents, pods
from integration.node import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from integration.kubernetes.agents import Answer, Signer
    from integration.kubernetes.cluster import Cluster

API_PORT = 9466


class Caller(NamedTuple):
    """Who may do everything with checkpoints, as the manager."""

    cluster: Cluster
    signer: Signer
    token: str
    addresses: dict[str, str]  # of the agents, by their nodes

    def ask(self, node: str, method: str, request: Any) -> Answer:
        answer = agents.call(
            self.cluster,
            f"{self.addresses[node]}:{API_PORT}",
            method,
            request,
            node=node,
            ca_pem=self.signer.ca_pem,
            token=self.token,
        )
        assert answer.code == "OK", answer.text
        return answer

    def restarts(self, node: str) -> int:
        """How often the node's agent was started again."""
        found = self.cluster.get("pods", "-n", agents.NAMESPACE)["items"]
        (pod,) = (one for one in found if one["spec"]["nodeName"] == node)
        count: int = pod["status"]["containerStatuses"][0]["restartCount"]
        return count

    def job(self, node: str, method: str, request: Any) -> agent_pb2.Job:
        """A job that has ended."""
        begun = agent_pb2.Job.FromString(self.ask(node, method, request).messages[0])
        followed = self.ask(node, "Follow", agent_pb2.JobRequest(id=begun.id))
        return agent_pb2.Job.FromString(followed.messages[-1])


@pytest.fixture(scope="module")
def caller(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Caller:
    """The agents are there, as they are installed, and have certificates."""
    kubernetes.apply(*agents.objects(kubernetes))
    signer = agents.Signer(kubernetes, tmp_path_factory.mktemp("ca"))
    for _ in kubernetes.nodes:
        signer.sign(signer.next())
    kubernetes.kubectl("rollout", "status", "-n", agents.NAMESPACE, "daemonset/grit-agent")
    found = kubernetes.get("pods", "-n", agents.NAMESPACE)["items"]
    addresses = {pod["spec"]["nodeName"]: pod["status"]["podIP"] for pod in found}
    kubernetes.kubectl("create", "clusterrole", "mover", "--verb=*", "--resource=pods")
    rule = [{"op": "add", "path": "/rules", "value": [agents.EVERYTHING]}]
    kubernetes.kubectl(
        "patch", "clusterrole", "mover", "--type=json", f"--patch={json.dumps(rule)}"
    )
    kubernetes.kubectl("create", "serviceaccount", "-n", agents.NAMESPACE, "mover")
    bound = f"--serviceaccount={agents.NAMESPACE}:mover"
    kubernetes.kubectl("create", "clusterrolebinding", "mover", "--clusterrole=mover", bound)
    token = agents.token(kubernetes, "mover", agents.NAMESPACE, audience="grit-agent")
    return Caller(kubernetes, signer, token, addresses)


def pod_of_two(name: str, node: str, annotations: dict[str, str]) -> dict[str, Any]:
    """A counter, and beside it a container of another user, with a file open that is gone."""
    pod = pods.counter(name, node=node, annotations=annotations)
    script = "trap exit TERM; exec 5>/tmp/gone; rm /tmp/gone; while :; do sleep 1; done"
    user = {
        "name": "user",
        "image": images.BUSYBOX,
        "command": ["sh", "-c", script],
        "securityContext": {"runAsUser": 1000},
    }
    pod["spec"]["containers"].append(user)
    return pod


def test_an_agent_in_a_pod_knows_its_node(caller: Caller) -> None:
    for node in caller.cluster.nodes:
        (data,) = caller.ask(node.name, "Facts", agent_pb2.FactsRequest()).messages
        facts = agent_pb2.FactsReply.FromString(data)
        assert (facts.node, facts.checkpoint_root) == (node.name, "/mnt/grit-agent")
        assert compatibility.parse_facts(facts.facts.encode(), "facts").node.criu


def test_agents_in_pods_move_a_pod(caller: Caller) -> None:
    cluster = caller.cluster
    a, b = (node.name for node in cluster.nodes)
    cluster.apply(pod_of_two("counter", a, {}))
    cluster.wait("--for=condition=Ready", "pod/counter")
    cluster.wait_for_log("counter", "20", "-c", "counter")
    uid = cluster.get("pod", "counter")["metadata"]["uid"]
    taken = agent_pb2.CheckpointRequest(
        target="default/counter", name="by-agents", after="frozen", uid=uid
    )
    job = caller.job(a, "Checkpoint", taken)
    assert (job.state, job.text) == ("done", "")
    counted = len(cluster.pod_log("counter", "-c", "counter").split())
    caller.ask(a, "Resume", agent_pb2.ResumeRequest(target="default/counter", uid=uid))
    cluster.wait_for_log("counter", str(counted + 5), "-c", "counter")

    taken.replace = True
    assert caller.job(a, "Checkpoint", taken).text == ""
    counted = len(cluster.pod_log("counter", "-c", "counter").split())
    brought = agent_pb2.PrepareRequest(namespace="default", name="by-agents")
    brought.source, brought.host = f"peer://{a}", caller.addresses[a]
    job = caller.job(b, "Prepare", brought)
    assert (job.state, job.text) == ("done", "")

    annotations = {"grit.dev/restore-name": "by-agents"}
    cluster.apply(pod_of_two("counter-2", b, annotations))
    cluster.wait("--for=condition=Ready", "pod/counter-2")
    uid = cluster.get("pod", "counter-2")["metadata"]["uid"]
    (data,) = caller.ask(b, "Records", agent_pb2.RecordsRequest(pod_uid=uid)).messages
    records = json.loads(agent_pb2.RecordsReply.FromString(data).records)
    assert {one["container"]: one["outcome"] for one in records} == {
        "counter": "restored",
        "user": "restored",
    }
    cluster.kubectl("delete", "pod", "counter", "--wait=false")
    cluster.wait_for_log("counter-2", str(counted + 20), "-c", "counter")
    logged = [int(line) for line in cluster.pod_log("counter-2", "-c", "counter").split()]
    assert logged == list(range(1, len(logged) + 1))
    cluster.kubectl("delete", "pod", "counter-2", "--wait=false")


def test_an_agent_that_is_killed_in_a_checkpoint_gives_the_pod_back(caller: Caller) -> None:
    cluster = caller.cluster
    node = cluster.nodes[0]
    large = pods.counter("cut", node=node.name)
    large["spec"]["containers"][0]["command"][-1] = "300"  # MiB, which CRIU is seen to dump
    cluster.apply(large)
    cluster.wait("--for=condition=Ready", "pod/cut")
    cluster.wait_for_log("cut", "5")
    taken = agent_pb2.CheckpointRequest(target="default/cut", after="running")
    criu = "pkill -STOP -f '^criu: dump'"  # the title that it gives itself
    script = f"until {criu}; do :; done; pkill -KILL -x grit"
    killing = node.popen(["timeout", "30", "sh", "-c", script])
    caller.ask(node.name, "Checkpoint", taken)
    assert killing.wait() == 0
    while not caller.restarts(node.name):
        time.sleep(0.1)
    # In the middle of a task, it has outlived the agent's container.
    node.run(["pkill", "-CONT", "-x", "criu"])
    counted = len(cluster.pod_log("cut").split())
    cluster.wait_for_log("cut", str(counted + 20))
    assert not (node.path(agents.CHECKPOINTS) / "cut").exists()
    cluster.kubectl("delete", "pod", "cut", "--wait=false")
