"""A node that is lost: its pods go on elsewhere once it is sure that they do not run there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grit_runtime.manager import fencing, lost_nodes
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.kubernetes.objects import assert_goes_on, living, made, started, until
from integration.node import volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster

SOURCE, TARGET = NODES
STORE = "/var/lib/shared-store"
ASKS = {lost_nodes.ON_NODE_LOSS: lost_nodes.RESTORE}
SIGNAL = """
for dir in /proc/[0-9]*; do
    ! grep -qs ^/opt/kubernetes/kubelet $dir/cmdline || kill -{} ${{dir#/proc/}}
done
"""

pytestmark = pytest.mark.usefixtures("alone", "comes_back")


@pytest.fixture
def store(kubernetes: Cluster, tmp_path: Path) -> str:
    """A store that all nodes have."""
    for node in kubernetes.nodes:
        volume.mount(tmp_path, node, Path(STORE))
    return f"file://{STORE}"


@pytest.fixture
def comes_back(kubernetes: Cluster, name: str) -> Iterator[None]:  # noqa: ARG001 -- goes after
    """In the end the node is back."""
    yield
    kubernetes.node(SOURCE).run(["sh", "-c", SIGNAL.format("CONT")])
    kubernetes.kubectl("annotate", "node", SOURCE, f"{fencing.FENCED}-")
    kubernetes.wait("--for=condition=Ready", f"node/{SOURCE}")


def on_source(pod: dict[str, Any]) -> dict[str, Any]:
    """The pod, which prefers the node that is lost, and stays when it is."""
    preferred = {
        "weight": 100,
        "preference": {
            "matchFields": [{"key": "metadata.name", "operator": "In", "values": [SOURCE]}]
        },
    }
    ways = {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}
    return {**pod, "spec": {**pod["spec"], "affinity": {"nodeAffinity": ways}}}


def test_pods_of_a_lost_node_go_on_elsewhere_once_it_is_fenced(
    kubernetes: Cluster, name: str, store: str
) -> None:
    running = {
        kind: started(kubernetes, make(on_source(pods.counter(f"{name}-{kind}", annotations=ASKS))))
        for kind, make in (
            ("bare", lambda pod: pod),
            ("deployment", pods.deployment),
            ("set", pods.stateful_set),
        )
    }
    for kind, pod in running.items():
        assert kubernetes.get("pod", pod)["spec"]["nodeName"] == SOURCE
        kubernetes.apply(made("Checkpoint", f"{name}-{kind}", podName=pod, storage={"url": store}))
    for kind in running:
        status = grit.ended(kubernetes, "checkpoint", f"{name}-{kind}", "Checkpointed")
        assert status["phase"] == "Checkpointed", status
    kubernetes.node(SOURCE).run(["sh", "-c", SIGNAL.format("STOP")])
    kubernetes.wait("--for=condition=Ready=Unknown", f"node/{SOURCE}", timeout_s=120)

    of_node = f"involvedObject.name={SOURCE},reason=NodeLost"
    until(
        "it is told what is waited for",
        lambda: kubernetes.get("events", "-A", "--field-selector", of_node)["items"],
    )
    assert kubernetes.get("restores")["items"] == []
    # As eviction by taint would after its five minutes: the owner wants another at once.
    kubernetes.kubectl("delete", "pod", running["deployment"], "--wait=false")
    # It is refused, or waits at a gate where the server knows those (1.26 and newer).
    others = [
        one for one in kubernetes.get("pods")["items"] if one["spec"].get("nodeName") != SOURCE
    ]
    assert all(one["spec"].get("schedulingGates") for one in others), others

    kubernetes.kubectl("annotate", "node", SOURCE, f"{fencing.FENCED}=true")
    restores = until(
        "all are restored",
        lambda: (
            found
            if len(found := kubernetes.get("restores")["items"]) == 3
            and all((one.get("status") or {}).get("phase") == "Restored" for one in found)
            else None
        ),
    )
    for one in restores:
        assert one["status"]["nodeName"] == TARGET
        assert_goes_on(kubernetes, one["status"]["targetPod"])
    for kind in running:
        (left,) = living(kubernetes, f"app={name}-{kind}")
        assert left["spec"]["nodeName"] == TARGET
    # The node is back, and kubelet ends what the API server has no more.
    kubernetes.node(SOURCE).run(["sh", "-c", SIGNAL.format("CONT")])
    until("none of them runs there", lambda: containers(kubernetes) == [])


def containers(kubernetes: Cluster) -> list[str]:
    """The counters that the source's containerd runs."""
    listed = kubernetes.node(SOURCE).run(["ctr", "-n", "k8s.io", "tasks", "ls"]).stdout
    known = kubernetes.node(SOURCE).run(["ctr", "-n", "k8s.io", "containers", "ls"]).stdout
    counters = {line.split()[0] for line in known.splitlines() if "python" in line}
    return [line for line in listed.splitlines() if line.split()[0] in counters]
