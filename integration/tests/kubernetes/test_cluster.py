"""Pods of a real cluster: run by kubelet itself, and moved by hand."""

from __future__ import annotations

import pytest

from integration.kubernetes import pods
from integration.node.node import HANDLER, SHIM_HANDLER
from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster


@pytest.mark.parametrize("runtime_class", [HANDLER, SHIM_HANDLER])
def test_a_deployment_runs_and_is_heard(kubernetes: Cluster, runtime_class: str) -> None:
    name = f"deployed-{runtime_class}"
    kubernetes.apply(pods.deployment(pods.counter(name, runtime_class=runtime_class)))
    kubernetes.kubectl("rollout", "status", f"deployment/{name}")
    (pod,) = kubernetes.get("pods", "-l", f"app={name}")["items"]
    name = pod["metadata"]["name"]
    kubernetes.wait_for_log(name, "20")
    said = kubernetes.kubectl("exec", name, "--", "/bin/sh", "-c", "hostname; cat /root-count")
    hostname, count = said.stdout.split()
    assert hostname == name
    assert int(count) >= 20
    deployment = pod["metadata"]["labels"]["app"]
    kubernetes.kubectl("delete", "deployment", deployment, "--wait=false")


def test_a_pod_is_moved_by_hand(kubernetes: Cluster) -> None:
    a, b = kubernetes.nodes
    kubernetes.apply(pods.counter("counter", node=a.name))
    kubernetes.wait("--for=condition=Ready", "pod/counter")
    kubernetes.wait_for_log("counter", "20")
    a.run(["grit", "checkpoint", "default/counter", "--name", "nightly", "--after", "frozen"])
    there = checkpoints.carry(a, b, "nightly")
    counted = len((there / "counter/container.log").read_text().splitlines())
    annotations = {"grit.dev/restore-name": "nightly"}
    kubernetes.apply(pods.counter("counter-2", node=b.name, annotations=annotations))
    kubernetes.kubectl("delete", "pod", "counter", "--wait=false")
    kubernetes.wait("--for=condition=Ready", "pod/counter-2")
    kubernetes.wait_for_log("counter-2", str(counted + 20))
    logged = [int(line) for line in kubernetes.pod_log("counter-2").split()]
    assert logged == list(range(1, len(logged) + 1))
    (container,) = kubernetes.get("pod", "counter-2")["status"]["containerStatuses"]
    assert container["restartCount"] == 0
    kubernetes.kubectl("delete", "pod", "counter-2", "--wait=false")
