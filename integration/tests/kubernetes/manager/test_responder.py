"""Evictions that are objects, as Kubernetes 1.37 has them: the manager moves the pod and says so.

The server here has no such API: a definition of its group, kind and fields stands in for it, and
the test for the controller that gives responders their turn. It drops the field by which a pod
names its responders.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from grit_runtime.manager import responder
from grit_runtime.manager.api import SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import assert_goes_on, migrations, started, until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager

EVICTIONS = "evictions.lifecycle.k8s.io"
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": EVICTIONS,
        "annotations": {"api-approved.kubernetes.io": "unapproved, experimental-only"},
    },
    "spec": {
        "group": "lifecycle.k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "Eviction", "plural": "evictions", "singular": "eviction"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": ANYTHING, "status": ANYTHING},
                    }
                },
            }
        ],
    },
}


@pytest.fixture(scope="module")
def served(kubernetes: Cluster, manager: Manager) -> Iterator[None]:
    """The server has the API, and the manager has looked."""
    kubernetes.apply(DEFINITION)
    kubernetes.wait("--for=condition=Established", f"crd/{EVICTIONS}")
    manager.stop()
    manager.start()
    yield
    kubernetes.kubectl("delete", f"crd/{EVICTIONS}")


@pytest.fixture
def name(kubernetes: Cluster, name: str, served: None) -> Iterator[str]:  # noqa: ARG001
    """A name for what a test makes, with its Evictions."""
    yield name
    kubernetes.kubectl("delete", EVICTIONS, "--all", "--wait=false")


def activated(kubernetes: Cluster, name: str, pod: dict[str, Any]) -> None:
    """An Eviction of the *pod*, with the manager's turn come."""
    meta = pod["metadata"]
    made = {
        "apiVersion": "lifecycle.k8s.io/v1alpha1",
        "kind": "Eviction",
        "metadata": {"name": name},
        "spec": {"target": {"pod": {"name": meta["name"], "uid": meta["uid"]}}},
    }
    kubernetes.apply(made)
    found = kubernetes.get(EVICTIONS, name)
    evictor = {"name": "imperative-eviction.k8s.io/evictor", "priority": 100}
    found["status"] = {
        "targetResponders": [
            {**responder.OURS, "state": "Active"},
            {**evictor, "state": "Inactive"},
        ],
        "responders": [
            {"name": responder.NAME, "startTime": "2026-11-30T12:00:00Z"},
            {"name": evictor["name"]},
        ],
    }
    path = f"/apis/lifecycle.k8s.io/v1alpha1/namespaces/default/evictions/{name}/status"
    kubernetes.kubectl("replace", "--raw", path, "-f", "-", input=json.dumps(found))


def told(kubernetes: Cluster, name: str) -> dict[str, Any]:
    """What the manager says in the Eviction."""
    own, other = kubernetes.get(EVICTIONS, name)["status"]["responders"]
    assert set(other) == {"name"}  # another's is left alone
    assert isinstance(own, dict)
    return own


def test_a_pod_of_an_eviction_moves_and_the_eviction_says_so(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    activated(kubernetes, name, kubernetes.get("pod", pod))
    until("it is answered", lambda: told(kubernetes, name).get("heartbeatTime"))
    assert f"pod default/{pod} is being moved by Migration" in told(kubernetes, name)["message"]
    (one,) = migrations(kubernetes)
    status = grit.ended(kubernetes, "migration", one["metadata"]["name"], SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    until("it is done", lambda: told(kubernetes, name).get("completionTime"))
    assert told(kubernetes, name)["message"] == "the pod has gone"
    assert_goes_on(kubernetes, status["targetPod"])


def test_a_pod_that_does_not_move_is_left_to_the_next_responder(
    kubernetes: Cluster, name: str
) -> None:
    plain = pods.counter(name)
    del plain["spec"]["runtimeClassName"]
    pod = started(kubernetes, plain)
    activated(kubernetes, name, kubernetes.get("pod", pod))
    until("it is done", lambda: told(kubernetes, name).get("completionTime"))
    assert "does not move, and may be evicted" in told(kubernetes, name)["message"]
    assert migrations(kubernetes) == []
    assert "deletionTimestamp" not in kubernetes.get("pod", pod)["metadata"]
