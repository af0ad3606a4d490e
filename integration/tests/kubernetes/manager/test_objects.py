"""Pods that are checkpointed, restored and moved by objects of the API server."""

from __future__ import annotations

import pytest

from grit_runtime.manager.api import RESTORED, SUBMITTED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import (
    assert_goes_on,
    assert_goes_on_alone,
    living,
    made,
    started,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster


def test_a_bare_pod_moves_to_another_node(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.counter(name))
    source = kubernetes.get("pod", pod)
    migration = f"{name}-{'long' * 20}"  # longer than a label's value may be
    kubernetes.apply(made("Migration", migration, podName=pod))
    status = grit.ended(kubernetes, "migration", migration, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert status["sourceNode"] == source["spec"]["nodeName"]
    assert status["targetNode"] != status["sourceNode"]
    assert 0 < status["downtimeSeconds"] < sum(status["durations"].values())
    assert f" {status['downtimeSeconds']} " in kubernetes.kubectl("get", "mig", migration).stdout
    assert_goes_on(kubernetes, status["targetPod"])
    assert [one["metadata"]["name"] for one in living(kubernetes, f"app={name}")] == [
        status["targetPod"]
    ]


def test_a_pod_moves_again_by_a_migration_of_the_same_name(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    nodes = []
    for _ in range(2):
        kubernetes.apply(made("Migration", name, podName=pod))
        status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
        assert status["phase"] == SUCCEEDED, status
        pod = status["targetPod"]
        nodes.append(status["targetNode"])
        assert_goes_on(kubernetes, pod)
        kubernetes.kubectl("delete", "migration", name)
        until("its parts are gone", lambda: not kubernetes.get("checkpoints,restores")["items"])
    assert len(set(nodes)) == 2


@pytest.mark.parametrize("kind", ["deployment", "replica_set", "job"])
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
    assert_goes_on_alone(kubernetes, name, restore["targetPod"])
