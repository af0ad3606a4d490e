"""The agent's door for the cluster, at a real API server: certificates, tokens, who may what."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from grit_runtime.proto import agent_pb2
from integration.kubernetes import agents
from integration.node.network import ROUTER
from tests.store import made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from integration.kubernetes.agents import Answer, Signer
    from integration.kubernetes.cluster import Cluster

NODE = "behind-a-door"
TIMEOUT_S = 30.0

AGENT = """
import sys
from grit_runtime import paths
directory = sys.argv[1]
paths.RUN_DIR, paths.STATE_DIR = f"{directory}/run", f"{directory}/state"
from grit_runtime.agent import daemon
from grit_runtime.config import Config
daemon.run(Config(checkpoint_root=f"{directory}/checkpoints", agent_dir=f"{directory}/agent",
    containerd_address=f"{directory}/none.sock", agent_metrics=0, agent_port=int(sys.argv[2]),
    agent_api_port=int(sys.argv[3])), f"{directory}/account")
"""

PORTS = itertools.count(9465)  # one agent has two of them


class Agent(NamedTuple):
    """An agent beside the control plane, in a pod's place."""

    cluster: Cluster
    directory: Path
    signer: Signer
    pod: dict[str, Any]
    port: int

    def ask(self, method: str, request: Any, token: str = "") -> Answer:
        return agents.call(
            self.cluster,
            f"{ROUTER}:{self.port}",
            method,
            request,
            node=NODE,
            ca_pem=self.signer.ca_pem,
            token=token,
        )

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


def waited_for(what: Callable[[], Any]) -> Any:
    """What *what* returns, once that is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@contextmanager
def running(
    cluster: Cluster, directory: Path, signer: Signer, *, server_port: int = 443
) -> Iterator[Agent]:
    """An agent with the ServiceAccount of a pod of the DaemonSet."""
    pod: Any = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"agent-{time.monotonic_ns()}", "namespace": "grit-system"},
        "spec": {
            "nodeName": NODE,
            "serviceAccountName": "grit-agent",
            "containers": [{"name": "agent", "image": "none"}],
        },
    }
    cluster.apply(pod)
    pod = cluster.get("pod", "-n", "grit-system", pod["metadata"]["name"])
    account = directory / "account"
    account.mkdir(exist_ok=True)
    (account / "token").write_text(agents.token(cluster, "grit-agent", "grit-system", pod=pod))
    (account / "ca.crt").write_text(cluster.plane.authority.certificate)
    (account / "namespace").write_text("grit-system")
    (directory / "checkpoints").mkdir(exist_ok=True)
    environment = [
        "env",
        f"KUBERNETES_SERVICE_HOST={ROUTER}",
        f"KUBERNETES_SERVICE_PORT={server_port}",
    ]
    ports = next(PORTS), next(PORTS)
    argv = [*environment, f"NODE_NAME={NODE}", sys.executable, "-c", AGENT, directory, *ports]
    with (directory / "log").open("w") as log:
        process = cluster.plane.popen(argv, stderr=log)
    try:
        yield Agent(cluster, directory, signer, pod, ports[1])
    finally:
        cluster.kubectl("delete", "pod", "-n", "grit-system", "--force", pod["metadata"]["name"])
        subprocess.run(
            [*cluster.plane.enter_argv(), "pkill", "-TERM", "-f", f"{directory} "], check=True
        )
        process.wait()


@pytest.fixture(scope="module")
def signer(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    """The agents' manifest is applied, their node exists, and somebody can sign for them."""
    control_plane.apply(*agents.objects(control_plane))
    account = ["serviceaccount", "-n", "grit-system", "grit-agent"]
    waited_for(lambda: control_plane.kubectl("get", *account, check=False).returncode == 0)
    # A pod of a node that does not exist is deleted soon, and its token is worth nothing then.
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    control_plane.apply(node | {"spec": {"unschedulable": True}})
    yield agents.Signer(control_plane, tmp_path_factory.mktemp("ca"))
    control_plane.kubectl("delete", "node", NODE)


@pytest.fixture(scope="module")
def agent(
    control_plane: Cluster, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agent]:
    """An agent that has its certificate, on a node with the checkpoints one/state and two/state."""
    directory = tmp_path_factory.mktemp("agent")
    with running(control_plane, directory, signer) as agent:
        for namespace in ("one", "two"):
            control_plane.kubectl("create", "namespace", namespace)
            path = made.checkpoint(directory / "checkpoints", "state", {"main/pages": b"pages"})
            path.parent.rename(directory / "checkpoints" / namespace)
        request = signer.next()
        signer.sign(request)
        yield agent


def user(cluster: Cluster, *rules: dict[str, list[str]], namespace: str = "one") -> str:
    """A token of a new ServiceAccount, which is allowed what the *rules* say in its namespace."""
    name = f"user-{time.monotonic_ns()}"
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    }
    api_version, api_group = "rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
    role = {
        "apiVersion": api_version,
        "kind": "Role",
        "metadata": {"name": name, "namespace": namespace},
        "rules": [{"apiGroups": ["kaito.sh"], "resources": ["checkpoints"], **r} for r in rules],
    }
    binding = {
        "apiVersion": api_version,
        "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": api_group, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    cluster.apply(account, role, binding)
    return agents.token(cluster, name, namespace, audience="grit-agent")


def ref(namespace: str) -> agent_pb2.CheckpointRef:
    return agent_pb2.CheckpointRef(namespace=namespace, name="state")


def test_a_request_for_a_certificate_says_which_pod_it_is_of(
    control_plane: Cluster, signer: Signer, tmp_path: Path
) -> None:
    with running(control_plane, tmp_path, signer) as agent:
        request = signer.next()
        assert request["spec"]["username"] == "system:serviceaccount:grit-system:grit-agent"
        extra = request["spec"]["extra"]
        metadata = agent.pod["metadata"]
        assert extra["authentication.kubernetes.io/pod-name"] == [metadata["name"]]
        assert extra["authentication.kubernetes.io/pod-uid"] == [metadata["uid"]]
        assert sorted(request["spec"]["usages"]) == [
            *("client auth", "digital signature", "server auth"),
        ]
        control_plane.kubectl("certificate", "deny", request["metadata"]["name"])
        waited_for(lambda: "Denied" in agent.log)
        again = signer.next()
        assert again["metadata"]["name"] != request["metadata"]["name"]
        signer.sign(again)
        assert agent.ask("Status", agent_pb2.StatusRequest()).code == "UNAUTHENTICATED"


def test_who_shows_no_token_or_one_for_others_is_turned_away(agent: Agent) -> None:
    others = agents.token(agent.cluster, "default", "one")
    for token, words in (
        ("", "no token: expected metadata"),
        ("forged", "does not know the token"),
        (others, "does not know the token for the audience grit-agent"),
    ):
        answer = agent.ask("Describe", ref("one"), token)
        assert (answer.code, answer.reason) == ("UNAUTHENTICATED", "Unauthenticated")
        assert words in answer.text


def test_who_has_no_role_is_told_what_is_missing(agent: Agent) -> None:
    answer = agent.ask("Describe", ref("one"), user(agent.cluster))
    assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "PermissionDenied")
    assert "may not get checkpoints.kaito.sh state in namespace one" in answer.text


def test_a_role_in_a_namespace_is_one_for_its_checkpoints_alone(agent: Agent) -> None:
    token = user(agent.cluster, {"verbs": ["get"]})
    answer = agent.ask("Describe", ref("one"), token)
    assert (answer.code, answer.text) == ("OK", "")
    told = agent_pb2.Description.FromString(answer.messages[0])
    assert (told.size_bytes, list(told.containers)) == (5, ["main"])
    assert agent.ask("Describe", ref("two"), token).code == "PERMISSION_DENIED"
    assert agent.ask("Remove", ref("one"), token).code == "PERMISSION_DENIED"
    for method, request in (
        ("Status", agent_pb2.StatusRequest()),
        ("Facts", agent_pb2.FactsRequest()),
        ("Records", agent_pb2.RecordsRequest(pod_uid="uid-1")),
        ("Follow", agent_pb2.JobRequest(id="0" * 16)),
    ):
        answer = agent.ask(method, request, token)
        assert answer.code == "PERMISSION_DENIED"
        assert "in all namespaces" in answer.text


def test_a_role_that_is_taken_away_opens_nothing_for_long(agent: Agent) -> None:
    token = user(agent.cluster, {"verbs": ["get"]})
    assert agent.ask("Describe", ref("one"), token).code == "OK"
    agent.cluster.kubectl("delete", "rolebindings", "-n", "one", "--all")
    waited_for(lambda: agent.ask("Describe", ref("one"), token).code == "PERMISSION_DENIED")


def test_each_call_needs_its_verb(agent: Agent) -> None:
    tokens = {
        verb: user(agent.cluster, {"verbs": [verb]})
        for verb in ("get", "create", "restore", "delete")
    }
    peer = "peer://node-b"
    for method, request, needed in (
        ("Checkpoint", agent_pb2.CheckpointRequest(target="one/pod", after="running"), "create"),
        ("Push", agent_pb2.PushRequest(namespace="one", name="none", target=peer), "create"),
        (
            "Prepare",
            agent_pb2.PrepareRequest(namespace="one", name="none", source=peer),
            "restore",
        ),
        ("Resume", agent_pb2.ResumeRequest(target="one/pod"), "delete"),
        ("Remove", agent_pb2.RemoveRequest(namespace="one", name="none"), "delete"),
    ):
        codes = {verb: agent.ask(method, request, token).code for verb, token in tokens.items()}
        assert {verb for verb, code in codes.items() if code != "PERMISSION_DENIED"} == {needed}


def test_one_checkpoint_may_be_allowed_by_its_name(agent: Agent) -> None:
    token = user(agent.cluster, {"verbs": ["restore"], "resourceNames": ["mine"]})
    request = agent_pb2.PrepareRequest(namespace="one", name="mine", source="peer://node-b")
    assert agent.ask("Prepare", request, token).code == "OK"
    request.name = "state"
    assert agent.ask("Prepare", request, token).code == "PERMISSION_DENIED"


@pytest.mark.parametrize("store", ["/etc/new", "s3://bucket"])
def test_a_place_of_the_node_or_its_account_is_not_a_namespace_s_to_use(
    agent: Agent, store: str
) -> None:
    token = user(agent.cluster, {"verbs": ["create", "restore", "delete"]})
    for method, request in (
        ("Remove", agent_pb2.RemoveRequest(namespace="one", name="state", store=store)),
        ("Push", agent_pb2.PushRequest(namespace="one", name="state", target=store)),
        ("Prepare", agent_pb2.PrepareRequest(namespace="one", name="state", source=store)),
        (
            "Checkpoint",
            agent_pb2.CheckpointRequest(target="one/pod", after="running", push=store),
        ),
    ):
        answer = agent.ask(method, request, token)
        assert answer.code == "PERMISSION_DENIED"
        assert "in all namespaces" in answer.text


def test_a_job_is_its_namespace_s(agent: Agent) -> None:
    request = agent_pb2.PrepareRequest(namespace="one", name="job", source="peer://node-b")
    both = user(agent.cluster, {"verbs": ["restore", "get", "delete"]})
    job = agent_pb2.Job.FromString(agent.ask("Prepare", request, both).messages[0])
    wanted = agent_pb2.JobRequest(id=job.id)
    *_, last = agent.ask("Follow", wanted, both).messages
    assert agent_pb2.Job.FromString(last).state == "failed"
    assert agent.ask("Cancel", wanted, both).code == "OK"
    other = user(agent.cluster, {"verbs": ["get", "delete"]}, namespace="two")
    assert agent.ask("Follow", wanted, other).code == "PERMISSION_DENIED"
    assert agent.ask("Cancel", wanted, other).code == "PERMISSION_DENIED"


def test_a_certificate_is_renewed_and_served_before_it_ends(
    control_plane: Cluster, signer: Signer, tmp_path: Path
) -> None:
    with running(control_plane, tmp_path, signer) as agent:
        request = signer.next()
        first = signer.sign(request, valid_s=20)
        assert agent.ask("Status", agent_pb2.StatusRequest()).serial == first
        key = (tmp_path / "agent/node.key").read_bytes()
        request = signer.next()
        second = signer.sign(request)
        waited_for(lambda: agent.ask("Status", agent_pb2.StatusRequest()).serial == second)
        assert (tmp_path / "agent/node.key").read_bytes() == key
        assert key not in json.dumps(request).encode()


def test_an_agent_takes_a_new_ca_and_a_certificate_of_it(
    control_plane: Cluster, signer: Signer, tmp_path: Path
) -> None:
    directory = tmp_path / "node"
    directory.mkdir()
    with running(control_plane, directory, signer):
        request = signer.next()
        signer.sign(request)
        waited_for((directory / "agent/node.pem").exists)
    ca = tmp_path / "ca"
    ca.mkdir()
    other = agents.Signer(control_plane, ca)
    try:
        with running(control_plane, directory, other) as agent:
            request = other.next()
            serial = other.sign(request)
            waited_for(lambda: agent.ask("Status", agent_pb2.StatusRequest()).serial == serial)
            assert (directory / "agent/ca.pem").read_bytes() == other.ca_pem
    finally:
        signer.publish()


def test_while_the_api_server_is_away_nobody_is_let_in_and_told_why(
    control_plane: Cluster, signer: Signer, tmp_path: Path
) -> None:
    with running(control_plane, tmp_path, signer):
        signer.sign(signer.next())
        waited_for((tmp_path / "agent/node.pem").exists)
    with running(control_plane, tmp_path, signer, server_port=1) as agent:
        answer = agent.ask("Status", agent_pb2.StatusRequest(), "token")
    assert (answer.code, answer.reason) == ("UNAVAILABLE", "Unavailable")
    assert f"the API server at {ROUTER} port 1 does not answer" in answer.text
