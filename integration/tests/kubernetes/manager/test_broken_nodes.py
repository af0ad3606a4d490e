"""A node that is lost while a pod is on its way: the pod goes on at one end of it."""

from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager.api import CHECKPOINTED, RESTORING, ROLLING_BACK, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.kubernetes.objects import (
    assert_one_goes_on,
    made,
    reached,
    started,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.node.node import Node

BALLAST_MIB = "256"  # which takes a moment to bring
TIMEOUT_S = 20
PROGRAMS = ("^/opt/kubernetes/kubelet ", "grit agent run", "^(/usr/bin/)?containerd( |$)")


def signalled(node: Node, signal: str) -> None:
    for program in PROGRAMS:
        node.run(["pkill", f"-{signal}", "-f", program])


@pytest.fixture
def moving(kubernetes: Cluster, name: str) -> Iterator[str]:
    """A pod that is on its way; in the end all nodes are there."""
    counter = pods.counter(name)
    counter["spec"]["containers"][0]["command"][-1] = BALLAST_MIB
    pod = started(kubernetes, counter)
    kubernetes.apply(made("Migration", name, podName=pod, timeoutSeconds=TIMEOUT_S))
    yield pod
    for node in kubernetes.nodes:
        signalled(node, "CONT")
    kubernetes.wait("--for=condition=Ready", *(f"node/{node}" for node in NODES), timeout_s=90)


def now(kubernetes: Cluster, migration: str) -> dict[str, Any]:
    status: dict[str, Any] = kubernetes.get("migration", migration)["status"]
    return status


def test_a_source_whose_node_is_lost_after_the_seal_runs_on_when_it_is_back(
    kubernetes: Cluster, name: str, moving: str
) -> None:
    node = kubernetes.node(kubernetes.get("pod", moving)["spec"]["nodeName"])
    reached(kubernetes, "checkpoint", name, CHECKPOINTED)
    signalled(node, "STOP")

    def is_decided() -> bool:
        status = now(kubernetes, name)
        return "source is held still" in status.get("message", "") or status["phase"] == SUCCEEDED

    until("it is decided", is_decided)
    signalled(node, "CONT")
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert_one_goes_on(kubernetes, f"app={name}", moving, status)


def test_a_target_whose_node_is_lost_during_the_pull_is_given_up(
    kubernetes: Cluster, name: str, moving: str
) -> None:
    source = kubernetes.get("pod", moving)["spec"]["nodeName"]
    (target,) = (node for node in kubernetes.nodes if node.name != source)
    reached(kubernetes, "migration", name, RESTORING)
    signalled(target, "STOP")
    until("it is given up", lambda: now(kubernetes, name)["phase"] in (ROLLING_BACK, SUCCEEDED))
    # It may run there, as far as anybody knows: the source does not go on beside it.
    assert len(kubernetes.get("pods", "-l", f"app={name}")["items"]) == 2
    signalled(target, "CONT")
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert_one_goes_on(kubernetes, f"app={name}", moving, status)
