"""Pods of a real cluster: run by kubelet itself, and moved by hand."""

from __future__ import annotations

import pytest

from integration.kubernetes import pods
from integration.node.node import HANDLER, SHIM_HANDLER
from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster
    from integration.node.rootfs import Edition


# Asks the API server who it is, as kubelet and the service account's volume say.
ASKS = """
import os, ssl, urllib.request
from pathlib import Path
import grit_runtime.cli.main, grpc, prometheus_client
account = Path("/var/run/secrets/kubernetes.io/serviceaccount")
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}/apis"
token = (account / "token").read_text()
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
context = ssl.create_default_context(cafile=account / "ca.crt")
print(urllib.request.urlopen(request, context=context).status)
"""


@pytest.mark.parametrize("runtime_class", [HANDLER, SHIM_HANDLER])
def test_a_deployment_runs_and_is_heard(kubernetes: Cluster, runtime_class: str) -> None:
    deployment = f"deployed-{runtime_class}"
    kubernetes.apply(pods.deployment(pods.counter(deployment, runtime_class=runtime_class)))
    kubernetes.kubectl("rollout", "status", f"deployment/{deployment}")
    (pod,) = kubernetes.get("pods", "-l", f"app={deployment}")["items"]
    name = pod["metadata"]["name"]
    kubernetes.wait_for_log(name, "20")
    said = kubernetes.kubectl("exec", name, "--", "/bin/sh", "-c", "hostname; cat /root-count")
    hostname, count = said.stdout.split()
    assert hostname == name
    assert int(count) >= 20
    kubernetes.kubectl("delete", "deployment", deployment, "--wait=false")


def test_a_pod_is_moved_by_hand(kubernetes: Cluster) -> None:
    a, b = kubernetes.nodes
    kubernetes.apply(pods.counter("by-hand", node=a.name))
    kubernetes.wait("--for=condition=Ready", "pod/by-hand")
    kubernetes.wait_for_log("by-hand", "20")
    a.run(["grit", "checkpoint", "default/by-hand", "--name", "nightly", "--after", "frozen"])
    there = checkpoints.carry(a, b, "nightly")
    counted = len((there / "counter/container.log").read_text().splitlines())
    annotations = {"grit.dev/restore-name": "nightly"}
    kubernetes.apply(pods.counter("by-hand-2", node=b.name, annotations=annotations))
    kubernetes.kubectl("delete", "pod", "by-hand", "--wait=false")
    kubernetes.wait("--for=condition=Ready", "pod/by-hand-2")
    kubernetes.wait_for_log("by-hand-2", str(counted + 20))
    logged = [int(line) for line in kubernetes.pod_log("by-hand-2").split()]
    assert logged == list(range(1, len(logged) + 1))
    (container,) = kubernetes.get("pod", "by-hand-2")["status"]["containerStatuses"]
    assert container["restartCount"] == 0
    kubernetes.kubectl("delete", "pod", "by-hand-2", "--wait=false")


def test_a_pod_of_the_project_reaches_the_api_server(kubernetes: Cluster, edition: Edition) -> None:
    kubernetes.apply(pods.of_the_project("asks", edition, ["-c", ASKS]))
    kubernetes.wait_for_log("asks", "200")
    kubernetes.kubectl("delete", "pod", "asks", "--wait=false")
