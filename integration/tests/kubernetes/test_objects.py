"""Pods that are checkpointed, restored and moved by objects of the API server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from integration.kubernetes import grit, pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager

CHECKPOINTED, SUBMITTED, RESTORED, SUCCEEDED = "Checkpointed", "Submitted", "Restored", "Succeeded"


@pytest.fixture(autouse=True)
def emptied(kubernetes: Cluster, manager: Manager) -> Iterator[None]:  # noqa: ARG001
    """Nothing of a test is left for the next one."""
    yield
    for kind in ("migration", "restore", "checkpoint", "deployment", "replicaset", "job", "pod"):
        kubernetes.kubectl("delete", kind, "--all", "--grace-period=1", timeout_s=90)


def made(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of kaito.sh."""
    meta = {"name": name}
    return {"apiVersion": "kaito.sh/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}


def only_pod(kubernetes: Cluster, label: str) -> dict[str, Any]:
    """The one pod with that label that is not ending."""
    found = kubernetes.get("pods", "-l", label)["items"]
    (pod,) = (one for one in found if "deletionTimestamp" not in one["metadata"])
    return pod  # type: ignore[no-any-return]


def started(kubernetes: Cluster, *objects: dict[str, Any]) -> str:
    """Apply what makes one counting pod: its name, once it has counted to 20."""
    kubernetes.apply(*objects)
    label = f"app={objects[0]['metadata']['name']}"
    deadline = time.monotonic() + grit.TIMEOUT_S
    while not kubernetes.get("pods", "-l", label)["items"]:
        assert time.monotonic() < deadline, "no pod"
    name: str = only_pod(kubernetes, label)["metadata"]["name"]
    kubernetes.wait("--for=condition=Ready", f"pod/{name}")
    kubernetes.wait_for_log(name, "20")
    return name


def assert_counts_on(kubernetes: Cluster, pod: str) -> None:
    """The pod goes on from another's count, and has never been started again."""
    kubernetes.wait("--for=condition=Ready", f"pod/{pod}")
    logged = [int(line) for line in kubernetes.pod_log(pod).split()]
    kubernetes.wait_for_log(pod, str(logged[-1] + 20))
    logged = [int(line) for line in kubernetes.pod_log(pod).split()]
    assert logged[-1] >= 40
    assert logged == list(range(logged[0], logged[0] + len(logged)))
    (container,) = kubernetes.get("pod", pod)["status"]["containerStatuses"]
    assert container["restartCount"] == 0


def test_a_bare_pod_moves_and_its_source_goes_when_the_target_is_verified(
    kubernetes: Cluster,
) -> None:
    name = started(kubernetes, pods.counter("bare"))
    source = kubernetes.get("pod", name)
    kubernetes.apply(made("Migration", "move", podName=name))
    status = grit.ended(kubernetes, "migration", "move", SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert status["sourceNode"] == source["spec"]["nodeName"]
    assert status["targetNode"] != status["sourceNode"]
    assert_counts_on(kubernetes, status["targetPod"])
    kubernetes.kubectl("wait", "--for=delete", f"pod/{name}", "--timeout=60s")


def test_a_deployments_pod_moves_and_the_deployment_has_one_pod(kubernetes: Cluster) -> None:
    name = started(kubernetes, pods.deployment(pods.counter("deployed")))
    kubernetes.apply(made("Migration", "move", podName=name))
    status = grit.ended(kubernetes, "migration", "move", SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_counts_on(kubernetes, status["targetPod"])
    kubernetes.kubectl("wait", "--for=delete", f"pod/{name}", "--timeout=60s")
    assert only_pod(kubernetes, "app=deployed")["metadata"]["name"] == status["targetPod"]
    kubernetes.kubectl("rollout", "status", "deployment/deployed", "--timeout=30s")


def test_a_checkpoint_with_auto_migration_replaces_its_pod(kubernetes: Cluster) -> None:
    name = started(kubernetes, pods.deployment(pods.counter("deployed")))
    kubernetes.apply(made("Checkpoint", "auto", podName=name, autoMigration=True))
    status = grit.ended(kubernetes, "checkpoint", "auto", SUBMITTED)
    assert status["phase"] == SUBMITTED, status
    restore = grit.ended(kubernetes, "restore", "auto", RESTORED)
    assert_counts_on(kubernetes, restore["targetPod"])
    assert only_pod(kubernetes, "app=deployed")["metadata"]["name"] == restore["targetPod"]
