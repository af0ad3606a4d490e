"""Pods that no node can take: they wait, or their source runs on."""

from __future__ import annotations

import os

import pytest

from grit_runtime.manager.api import CHECKPOINTED, SUCCEEDED
from integration.kubernetes import cluster, grit, pods
from integration.kubernetes.objects import (
    assert_goes_on,
    assert_runs_on,
    cordoned,
    living,
    made,
    started,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster

WHY = "no node can take the pod"


def test_a_pod_that_no_node_can_take_goes_on_when_one_can(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Checkpoint", name, podName=pod))
    grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    with cordoned(kubernetes, *cluster.NODES):
        kubernetes.kubectl("delete", "pod", pod)

        def is_said() -> bool:
            return WHY in kubernetes.kubectl("get", "pods,events", "-o", "yaml").stdout

        until("it is said why it waits", is_said)
        assert not any("nodeName" in one["spec"] for one in living(kubernetes, f"app={name}"))
    (new,) = until("its owner has made another", lambda: living(kubernetes, f"app={name}"))
    assert_goes_on(kubernetes, new["metadata"]["name"])


def test_a_named_node_that_cannot_take_the_pod_is_the_reason(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    source = kubernetes.get("pod", pod)["spec"]["nodeName"]
    (target,) = set(cluster.NODES) - {source}
    with cordoned(kubernetes, target):
        kubernetes.apply(made("Migration", name, podName=pod, nodeName=target))
        status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert (status["phase"], status["reason"]) == ("Failed", "NoNode"), status
    assert f"{target}: has the taint" in status["message"]
    assert_runs_on(kubernetes, pod)


@pytest.mark.skipif("GRIT_LONG" not in os.environ, reason="room is waited for: two minutes")
@pytest.mark.parametrize("kind", ["counter", "deployment"])
def test_a_pod_that_no_node_has_room_for_runs_on(kubernetes: Cluster, name: str, kind: str) -> None:
    cores = int(kubernetes.get("node", cluster.NODES[0])["status"]["allocatable"]["cpu"])
    most = f"{cores * 1000 * 2 // 3}m"  # two of these do not fit
    for number in range(len(cluster.NODES) - 1):
        started(kubernetes, pods.wanting(pods.counter(f"{name}-other-{number}"), most))
    moving = pods.wanting(pods.counter(name), most)
    pod = started(kubernetes, moving if kind == "counter" else pods.deployment(moving))
    kubernetes.apply(made("Migration", name, podName=pod))
    kubernetes.wait("--for=condition=Failed", f"migration/{name}", timeout_s=200)
    status = kubernetes.get("migration", name)["status"]
    assert status["reason"] == "NoNode", status
    assert "Insufficient cpu" in status["message"]
    assert_runs_on(kubernetes, pod)
    (left,) = living(kubernetes, f"app={name}")
    assert left["metadata"]["name"] == pod
