"""Pods that are checkpointed, restored and moved by objects of the API server."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from integration.kubernetes import grit, pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster

CHECKPOINTED, SUBMITTED, RESTORED, SUCCEEDED = "Checkpointed", "Submitted", "Restored", "Succeeded"
KINDS = "migrations,restores,checkpoints,deployments,replicasets,statefulsets,jobs,pods"

pytestmark = pytest.mark.usefixtures("manager")
_NUMBERS = itertools.count()


@pytest.fixture
def name(kubernetes: Cluster) -> Iterator[str]:
    """A name for what a test makes, all of which goes when it has ended."""
    yield f"case-{next(_NUMBERS)}"
    kubernetes.kubectl("delete", KINDS, "--all", "--wait=false", "--grace-period=1")


def made(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of kaito.sh."""
    meta = {"name": name}
    return {"apiVersion": "kaito.sh/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}


def living(kubernetes: Cluster, label: str) -> list[dict[str, Any]]:
    """The pods with that label that are not ending."""
    found = kubernetes.get("pods", "-l", label)["items"]
    return [one for one in found if "deletionTimestamp" not in one["metadata"]]


def started(kubernetes: Cluster, made: dict[str, Any]) -> str:
    """Apply what makes one counting pod: its name, once it has counted to 20."""
    kubernetes.apply(made)
    label = f"app={made['metadata']['name']}"
    deadline = time.monotonic() + grit.TIMEOUT_S
    while not (found := living(kubernetes, label)):
        assert time.monotonic() < deadline, "no pod"
        time.sleep(0.1)
    name: str = found[0]["metadata"]["name"]
    kubernetes.wait("--for=condition=Ready", f"pod/{name}")
    kubernetes.wait_for_log(name, "20")
    return name


def assert_goes_on(kubernetes: Cluster, pod: str) -> None:
    """The pod goes on from another's count, and has never been started again."""
    kubernetes.wait("--for=condition=Ready", f"pod/{pod}")
    first, *_, last = (int(line) for line in kubernetes.pod_log(pod).split())
    kubernetes.wait_for_log(pod, str(max(last + 20, 40)))
    logged = [int(line) for line in kubernetes.pod_log(pod).split()]
    assert logged == list(range(first, first + len(logged)))
    (container,) = kubernetes.get("pod", pod)["status"]["containerStatuses"]
    assert container["restartCount"] == 0


def test_a_bare_pod_moves_to_another_node(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.counter(name))
    source = kubernetes.get("pod", pod)
    kubernetes.apply(made("Migration", name, podName=pod))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert status["sourceNode"] == source["spec"]["nodeName"]
    assert status["targetNode"] != status["sourceNode"]
    assert_goes_on(kubernetes, status["targetPod"])
    assert [one["metadata"]["name"] for one in living(kubernetes, f"app={name}")] == [
        status["targetPod"]
    ]


@pytest.mark.parametrize("kind", ["deployment", "job"])
def test_an_owners_pod_moves_and_the_owner_has_one_pod(
    kubernetes: Cluster, name: str, kind: str
) -> None:
    pod = started(kubernetes, getattr(pods, kind)(pods.counter(name)))
    kubernetes.apply(made("Migration", name, podName=pod))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on(kubernetes, status["targetPod"])
    (left,) = living(kubernetes, f"app={name}")
    assert left["metadata"]["name"] == status["targetPod"]
    assert left["metadata"]["ownerReferences"]


def test_a_statefulsets_pod_moves_under_its_own_name(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.stateful_set(pods.counter(name)))
    kubernetes.apply(made("Migration", name, podName=pod))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert status["targetPod"] == pod
    assert status["targetNode"] != status["sourceNode"]
    assert_goes_on(kubernetes, pod)


def test_a_checkpoint_with_auto_migration_replaces_its_pod(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Checkpoint", name, podName=pod, autoMigration=True))
    status = grit.ended(kubernetes, "checkpoint", name, SUBMITTED)
    assert status["phase"] == SUBMITTED, status
    restore = grit.ended(kubernetes, "restore", name, RESTORED)
    assert_goes_on(kubernetes, restore["targetPod"])
    (left,) = living(kubernetes, f"app={name}")
    assert left["metadata"]["name"] == restore["targetPod"]
