"""Which checkpoint a new pod goes on from, and what becomes of a Restore whose pod never comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from grit_runtime.errors import BusyError
from grit_runtime.manager import admission, api, claims, gates, matching, placement, pods, targets
from grit_runtime.manager.nodes import Nodes
from grit_runtime.manager.pod_fields import PodFields
from grit_runtime.model import compatibility, pod_template
from grit_runtime.model.compatibility import Facts
from grit_runtime.model.manifest import Node
from tests.manager.api_server import NAMESPACE, Refusal, Server, asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Cluster

ROOT = "/mnt/grit-agent"
NODE = "node-a"
FACTS = Facts(Node("6.18", "x86_64", (), "4.2.1", "1.3.6", "2.1.9", ""), ())
OWNER = {
    "apiVersion": "apps/v1",
    "kind": "ReplicaSet",
    "name": "trainer",
    "uid": "owner",
    "controller": True,
}


def made_pod(name: str = "trainer-2") -> dict[str, Any]:
    """A pod as its owner makes one."""
    meta = {
        "name": name,
        "namespace": NAMESPACE,
        "labels": {"app": "trainer"},
        "ownerReferences": [OWNER],
    }
    spec = {"runtimeClassName": "grit", "containers": [{"name": "main", "image": "trainer"}]}
    return {"metadata": meta, "spec": spec}


def checkpoint(server: Server, name: str, digest: str, uid: str = "gone") -> None:
    """A sealed Checkpoint of a pod of the owner, which is gone."""
    status = {
        "phase": api.CHECKPOINTED,
        "nodeName": NODE,
        "podName": "trainer-1",
        "podUID": uid,
        "podSpecHash": pod_template.digest(made_pod()),
        "podTemplate": made_pod(),
        "manifestDigest": digest,
        "needs": json.loads(compatibility.dump_facts(FACTS)),
        "completionTime": "2026-01-01T00:00:00Z",
    }
    meta = {"name": name, "namespace": NAMESPACE, "labels": {pods.OWNER: OWNER["uid"]}}
    spec = {"podName": "trainer-1"}
    server.put("checkpoints", {"metadata": meta, "spec": spec, "status": status})


def restore(server: Server, name: str, of: str, **meta: Any) -> None:
    """A Restore for the owner's next pod."""
    spec = {"checkpointName": of, "ownerRef": OWNER}
    meta |= {"name": name, "namespace": NAMESPACE}
    server.put("restores", {"metadata": meta, "spec": spec})


def ended(server: Server, name: str, phase: str) -> None:
    status = {"phase": phase, "targetPod": "trainer-1", "targetPodUID": "before"}
    server.change("restores", name, {"status": status})


@pytest.fixture
def server() -> Server:
    server = Server()
    server.put("nodes", {"metadata": {"name": NODE}})
    checkpoint(server, "nightly", "sha256:1")
    return server


def matched(server: Server, pod: dict[str, Any]) -> matching.Match:
    """What is said of a new pod."""
    request = {"object": pod, "namespace": NAMESPACE}
    return asked(server, lambda cluster: of(cluster).of(request))


def of(cluster: Cluster) -> matching.Matching:
    nodes = Nodes(cluster)
    nodes._known = [placement.node({"metadata": {"name": NODE}}, FACTS)]
    return matching.Matching(cluster, nodes, ROOT)


def values(match: matching.Match) -> dict[str, Any]:
    return {step["path"]: step["value"] for step in match.patch}


def come(server: Server, match: matching.Match, pod: dict[str, Any]) -> None:
    """The API server has the pod now."""
    found = values(match)
    annotations, labels = found["/metadata/annotations"], found["/metadata/labels"]
    meta = {**pod["metadata"], "annotations": annotations, "labels": labels}
    server.put("pods", {**pod, "metadata": meta})


def name_of(match: matching.Match) -> str:
    """The Restore by which the pod goes on."""
    name: str = values(match)["/metadata/annotations"][pods.RESTORE_NAME]
    return name


def give_up(server: Server, name: str) -> None:
    asked(server, lambda cluster: claims.give_up(cluster, NAMESPACE, name))


def test_the_next_pod_waits_while_a_restore_is_claimed_for_one_that_has_not_come(
    server: Server,
) -> None:
    assert name_of(matched(server, made_pod())) == "nightly"
    with pytest.raises(BusyError, match="is for another pod, which is being made"):
        matched(server, made_pod("trainer-3"))
    give_up(server, "nightly")
    assert name_of(matched(server, made_pod("trainer-3"))) == "nightly"


def test_so_it_is_with_a_restore_by_hand(server: Server) -> None:
    restore(server, "by-hand", "nightly")
    assert name_of(matched(server, made_pod())) == "by-hand"
    with pytest.raises(BusyError, match="Restore default/by-hand is for another pod"):
        matched(server, made_pod("trainer-3"))


def test_another_pod_starts_from_its_image_once_the_one_that_was_meant_has_come(
    server: Server,
) -> None:
    match = matched(server, made_pod())
    come(server, match, made_pod())
    assert matched(server, made_pod("trainer-3")) == matching.Match()
    give_up(server, "nightly")  # it is not given up: its pod is there
    assert matched(server, made_pod("trainer-3")) == matching.Match()


def test_a_pod_that_is_made_at_the_same_instant_waits_for_the_other(server: Server) -> None:
    async def make_both(cluster: Cluster) -> list[matching.Match]:
        async def first() -> matching.Match:
            match = await decisions.of({"object": made_pod(), "namespace": NAMESPACE})
            await asyncio.sleep(0.5)
            come(server, match, made_pod())
            return match

        decisions = of(cluster)
        second = {"object": made_pod("trainer-3"), "namespace": NAMESPACE}
        making = asyncio.create_task(first())
        await asyncio.sleep(0.2)
        return [await decisions.of(second), await making]

    second, first = asked(server, make_both)
    assert (name_of(first), second) == ("nightly", matching.Match())


def test_a_pod_that_is_not_meant_waits_for_nobody(server: Server) -> None:
    matched(server, made_pod())
    other = made_pod("trainer-3")
    other["spec"]["containers"][0]["image"] = "other"
    assert values(matched(server, other)) == {}


def test_of_several_restores_one_that_nobody_has_is_taken_first(server: Server) -> None:
    restore(server, "older", "nightly", annotations={targets.SELECTED: "true"})
    restore(server, "newer", "nightly")
    assert name_of(matched(server, made_pod())) == "newer"


@pytest.mark.parametrize(
    ("owner", "label", "is_meant"),
    [("owner", "trainer", True), ("owner", "other", False), ("another", "trainer", False)],
)
def test_a_restore_that_names_an_owner_and_labels_means_pods_with_both(
    server: Server,
    owner: str,
    label: str,
    is_meant: bool,  # noqa: FBT001
) -> None:
    server.remove("checkpoints", NAMESPACE, "nightly")
    checkpoint(server, "by-hand", "sha256:9")
    server.change("checkpoints", "by-hand", {"metadata": {"labels": {pods.OWNER: "nobody"}}})
    restore(server, "by-hand", "by-hand")
    spec = {"ownerRef": {"uid": owner}, "selector": {"matchLabels": {"app": label}}}
    server.change("restores", "by-hand", {"spec": spec})
    assert bool(matched(server, made_pod()).patch) == is_meant


def test_a_slow_api_server_starts_no_pod_from_its_image(server: Server) -> None:
    async def review(cluster: Cluster) -> admission.Answer:
        decisions = admission.Admission(cluster, Nodes(cluster), PodFields(cluster), ROOT)
        return await decisions.pod({"object": made_pod(), "namespace": NAMESPACE})

    server.delay_s = 2.0
    with pytest.raises(BusyError, match="is not known yet, as the API server is slow"):
        asked(server, review)


def test_a_restore_that_is_being_deleted_is_for_nobody(server: Server) -> None:
    restore(server, "nightly", "nightly", deletionTimestamp="2026-01-01T00:00:00Z")
    assert matched(server, made_pod()) == matching.Match()


@pytest.mark.parametrize("phase", [api.RESTORED, api.FAILED])
def test_a_checkpoint_that_is_made_anew_under_its_name_is_restored(
    server: Server, phase: str
) -> None:
    come(server, matched(server, made_pod()), made_pod())
    ended(server, "nightly", phase)
    server.remove("pods", NAMESPACE, "trainer-2")
    assert matched(server, made_pod("trainer-3")) == matching.Match()  # it was used
    server.remove("checkpoints", NAMESPACE, "nightly")
    checkpoint(server, "nightly", "sha256:2", uid="gone-too")
    match = matched(server, made_pod("trainer-3"))
    assert name_of(match) == "nightly-2"
    assert values(match)["/metadata/annotations"][pods.MANIFEST_DIGEST] == "sha256:2"
    assert server.get("restores", "nightly-2")["spec"]["checkpointName"] == "nightly"


def test_a_pod_that_lives_on_is_known_though_the_checkpoint_that_it_came_from_has_gone(
    server: Server,
) -> None:
    checkpoint(server, "later", "sha256:2")
    server.change("checkpoints", "later", {"status": {"completionTime": "2026-01-02T00:00:00Z"}})
    match = matched(server, made_pod())
    assert name_of(match) == "later"
    come(server, match, made_pod())
    uid = server.get("pods", "trainer-2")["metadata"]["uid"]
    status = {"phase": api.RESTORED, "targetPod": "trainer-2", "targetPodUID": uid}
    server.change("restores", "later", {"status": status})
    server.remove("checkpoints", NAMESPACE, "later")
    assert matched(server, made_pod("trainer-3")) == matching.Match()


@pytest.mark.parametrize("phase", ["Running", "Failed", "deleted"])
def test_a_pod_that_came_though_its_restore_failed_is_a_life_as_long_as_it_runs(
    server: Server, phase: str
) -> None:
    checkpoint(server, "later", "sha256:2")
    server.change("checkpoints", "later", {"status": {"completionTime": "2026-01-02T00:00:00Z"}})
    come(server, matched(server, made_pod()), made_pod())
    uid = server.get("pods", "trainer-2")["metadata"]["uid"]
    status = {"phase": api.FAILED, "targetPod": "trainer-2", "targetPodUID": uid}
    server.change("restores", "later", {"status": status})
    if phase == "deleted":
        server.remove("pods", NAMESPACE, "trainer-2")
    else:
        server.change("pods", "trainer-2", {"status": {"phase": phase}})
    assert bool(matched(server, made_pod("trainer-3")).patch) == (phase != "Running")


def test_a_restore_of_that_name_for_something_else_is_left_alone(server: Server) -> None:
    checkpoint(server, "other", "sha256:3", uid="of-another")
    server.change("checkpoints", "other", {"metadata": {"labels": {pods.OWNER: "another"}}})
    restore(server, "nightly", "other")
    server.change("restores", "nightly", {"spec": {"ownerRef": {"uid": "another"}}})
    assert name_of(matched(server, made_pod())) == "nightly-2"
    assert "annotations" not in server.get("restores", "nightly")["metadata"]


def test_a_restore_that_was_made_meanwhile_is_looked_at(server: Server) -> None:
    """By somebody else, or for another pod from the same checkpoint: never twice from one."""

    def make(method: str, plural: str) -> None:
        if (method, plural) == ("POST", "restores"):
            server.before = lambda _method, _plural: None
            restore(
                server,
                "nightly",
                "nightly",
                annotations=claims.noted(api.CheckpointStatus(manifest_digest="sha256:1")),
            )

    server.before = make
    with pytest.raises(BusyError, match="Restore default/nightly is for another pod"):
        matched(server, made_pod())


def test_what_cannot_be_read_is_passed_over_with_a_warning(server: Server) -> None:
    restore(server, "broken", "nightly")
    server.change("restores", "broken", {"spec": {"checkpointName": None, "timeoutSeconds": "x"}})
    checkpoint(server, "broken", "sha256:4")
    server.change("checkpoints", "broken", {"spec": {"after": "whenever"}})
    match = matched(server, made_pod())
    assert name_of(match) == "nightly"
    told = "; ".join(match.warnings)
    assert "Restore default/broken" in told
    assert "Checkpoint default/broken" in told


@pytest.mark.parametrize("has_gates", [True, False])
def test_the_webhook_has_such_a_pod_wait_by_a_gate_or_refuses_it(
    server: Server,
    has_gates: bool,  # noqa: FBT001
) -> None:

    async def review(cluster: Cluster) -> admission.Answer:
        fields = PodFields(cluster)
        fields.has_gates = has_gates
        decisions = admission.Admission(cluster, Nodes(cluster), fields, ROOT)
        return await decisions.pod({"object": made_pod(), "namespace": NAMESPACE})

    restore(
        server,
        "nightly",
        "nightly",
        annotations=claims.noted(api.CheckpointStatus(manifest_digest="sha256:1")),
    )
    if has_gates:
        found = {step["path"]: step["value"] for step in asked(server, review).patch}
        assert found["/spec/schedulingGates"] == [gates.GATE]
        assert "is for another pod" in found["/metadata/annotations"][gates.WAITS]
    else:
        with pytest.raises(BusyError, match="is for another pod"):
            asked(server, review)


def waiting(server: Server, pod: dict[str, Any]) -> dict[str, Any]:
    """The pod, which waits by a gate."""
    found = {step["path"]: step["value"] for step in gates.held(pod, "no node can take it")}
    meta = {
        **pod["metadata"],
        "annotations": found["/metadata/annotations"],
        "labels": found["/metadata/labels"],
    }
    spec = {**pod["spec"], gates.FIELD: found["/spec/schedulingGates"]}
    return server.put("pods", {"metadata": meta, "spec": spec})


def look(server: Server, pod: dict[str, Any]) -> None:
    """What the manager does now and then about a pod that waits."""

    async def looking(cluster: Cluster) -> None:
        async def decide(request: dict[str, Any]) -> Any:
            return (await of(cluster).of(request)).patch

        await gates._look(cluster, decide, pod)

    asked(server, looking)


def test_a_gate_that_does_not_open_gives_its_restore_back(server: Server) -> None:
    pod = waiting(server, made_pod())

    def write(method: str, plural: str) -> None:
        if (method, plural) == ("PATCH", "pods"):
            server.before = lambda _method, _plural: None
            server.change("pods", "trainer-2", {"metadata": {"labels": {"seen": "true"}}})

    server.before = write
    look(server, pod)
    assert gates.is_waiting(server.get("pods", "trainer-2"))
    assert claims.since(server.get("restores", "nightly")) is None
    look(server, server.get("pods", "trainer-2"))
    opened = server.get("pods", "trainer-2")
    assert not gates.is_waiting(opened)
    assert opened["metadata"]["annotations"][pods.RESTORE_NAME] == "nightly"
    assert claims.since(server.get("restores", "nightly")) is not None


def test_a_gate_stays_closed_while_the_restore_is_claimed(server: Server) -> None:
    pod = waiting(server, made_pod())
    matched(server, made_pod())
    look(server, pod)
    found = server.get("pods", "trainer-2")
    assert gates.is_waiting(found)
    assert "is for another pod" in found["metadata"]["annotations"][gates.WAITS]


def test_a_pod_whose_gate_cannot_be_opened_leaves_its_restore_to_the_next(
    server: Server,
) -> None:
    pod = waiting(server, made_pod())

    def refuse(method: str, plural: str) -> Refusal | None:
        if (method, plural) != ("PATCH", "pods"):
            return None
        server.before = lambda _method, _plural: None
        return Refusal(422, "Invalid")

    server.before = refuse
    look(server, pod)
    assert server.of("pods") == []
    assert name_of(matched(server, made_pod("trainer-3"))) == "nightly"


def test_a_gate_that_has_opened_without_an_answer_keeps_its_restore(server: Server) -> None:
    pod = waiting(server, made_pod())
    match = matched(server, pod)
    server.change("pods", "trainer-2", gates.opened(pod, match.patch))
    give_up(server, "nightly")
    assert claims.since(server.get("restores", "nightly")) is not None
