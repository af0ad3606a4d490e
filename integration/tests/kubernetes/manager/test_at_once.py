"""Several objects that want the same pod at once, and many at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from grit_runtime.manager.api import CHECKPOINTED, FAILED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import (
    assert_goes_on_alone,
    assert_runs_on,
    made,
    started,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from integration.kubernetes.cluster import Cluster

MANY = 200


def make_at_once(kubernetes: Cluster, *objects: dict[str, Any]) -> None:
    """The API server gets the objects all at once, which kubectl does not do."""
    program = [sys.executable, "-m", "integration.kubernetes.make_at_once"]
    subprocess.run(
        [*kubernetes.plane.enter_argv(), *program],
        input=json.dumps(objects),
        check=True,
        text=True,
    )


def test_two_checkpoints_of_a_pod_are_both_taken(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.counter(name))
    both = [f"{name}-{number}" for number in range(2)]
    make_at_once(kubernetes, *(made("Checkpoint", one, podName=pod) for one in both))
    for one in both:
        status = grit.ended(kubernetes, "checkpoint", one, CHECKPOINTED)
        assert status["phase"] == CHECKPOINTED, status
    assert_runs_on(kubernetes, pod)


def test_a_checkpoint_that_comes_too_late_leaves_the_pod_held(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))
    node = kubernetes.node(kubernetes.get("pod", pod)["spec"]["nodeName"])
    both = [f"{name}-{number}" for number in range(2)]
    make_at_once(
        kubernetes, *(made("Checkpoint", one, podName=pod, after="frozen") for one in both)
    )
    ends = {one: grit.ended(kubernetes, "checkpoint", one, CHECKPOINTED) for one in both}
    (late,) = (one for one in both if ends[one]["phase"] == FAILED)
    (sealed,) = (one for one in both if ends[one]["phase"] == CHECKPOINTED)
    assert ends[late]["reason"] == "PodHeld", ends[late]
    kubernetes.kubectl("delete", "checkpoint", late)
    states = json.loads(node.run(["grit", "status", "--json", f"default/{pod}"]).stdout)
    assert "held" in {state["outcome"] for state in states}
    kubernetes.kubectl("delete", "checkpoint", sealed)
    assert_runs_on(kubernetes, pod)


def test_of_two_migrations_of_a_pod_one_moves_it(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    both = [f"{name}-{number}" for number in range(2)]
    make_at_once(kubernetes, *(made("Migration", one, podName=pod) for one in both))
    ends = [grit.ended(kubernetes, "migration", one, SUCCEEDED) for one in both]
    assert sorted(end["phase"] for end in ends) == [FAILED, SUCCEEDED], ends
    (target,) = (end["targetPod"] for end in ends if end["phase"] == SUCCEEDED)
    assert_goes_on_alone(kubernetes, name, target)


@pytest.fixture
def nowhere(kubernetes: Cluster, name: str) -> Iterator[str]:
    """A pod that runs, as far as the API server knows, on a node that is not there."""
    node, pod = f"{name}-node", f"{name}-nowhere"
    kubernetes.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    kubernetes.apply(pods.counter(pod, node=node))
    found = kubernetes.get("pod", pod)
    found["status"] = {"phase": "Running"}
    path = f"/api/v1/namespaces/default/pods/{pod}/status"
    kubernetes.kubectl("replace", "--raw", path, "-f", "-", input=json.dumps(found))
    yield pod
    kubernetes.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    kubernetes.kubectl("delete", "node", node)


def test_many_at_once_all_come_to_an_end(kubernetes: Cluster, name: str, nowhere: str) -> None:
    pod = started(kubernetes, pods.counter(name))
    many = [f"{name}-{number}" for number in range(MANY)]
    make_at_once(
        kubernetes,
        *(made("Checkpoint", one, podName=nowhere) for one in many),
        made("Checkpoint", name, podName=pod),
    )

    def all_ended() -> list[dict[str, Any]]:
        found = kubernetes.get("checkpoints")["items"]
        ended = [one for one in found if "completionTime" in (one.get("status") or {})]
        return ended if len(ended) == MANY + 1 else []

    until("all have ended", all_ended)
    assert kubernetes.get("checkpoint", name)["status"]["phase"] == CHECKPOINTED
    reasons = {kubernetes.get("checkpoint", one)["status"]["reason"] for one in many[:3]}
    assert reasons == {"Unavailable"}
