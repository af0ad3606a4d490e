"""Pods that wait for a node: by a gate where the API server has those, else by their owners."""

from __future__ import annotations

from grit_runtime.manager.api import CHECKPOINTED
from integration.kubernetes import cluster, grit, pods
from integration.kubernetes.objects import assert_goes_on, cordoned, living, made, started, until

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
