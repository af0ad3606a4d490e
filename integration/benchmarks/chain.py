"""A pod that moves by a Migration, and by a chain of Jobs: what of it is the control plane's.

The chain is what upstream GRIT's controllers wait for, one after the other
(checkpoint_controller.go, restore_controller.go and the gate in PullImage @8bf3b54): a Job's pod on
the source; that Job's deletion in the foreground; the pod's deletion and its owner's next pod; a
Job's pod on the target; and the gate, which looks once a second. The Jobs do nothing here, and the
controllers' own work is not counted, nor kubectl's, which stands in for them.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import NamedTuple

from grit_runtime.manager import api
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.node import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from integration.kubernetes.cluster import Cluster
    from integration.node.node import Node

SOURCE, TARGET = NODES
GATE_S = 1.0  # from one look to the next: half of it is waited for
RECORDS = "/var/lib/grit/records"
_COUNTED = "20"


class Span(NamedTuple):
    begin_s: float
    end_s: float


def moved(cluster: Cluster, name: str) -> float:
    """Seconds of a migration in which nothing is dumped, brought, started or restored."""
    cluster.apply(pods.counter(name, node=SOURCE))
    cluster.wait("--for=condition=Ready", f"pod/{name}")
    cluster.wait_for_log(name, _COUNTED)
    uid = cluster.get("pod", name)["metadata"]["uid"]
    begin_s = time.time()
    cluster.apply(_migration(name))
    status = grit.ended(cluster, "migration", name, "Succeeded")
    assert status["phase"] == "Succeeded", status
    target = status["targetPod"]
    cluster.wait("--for=condition=Ready", f"pod/{target}")
    restored = _recorded(cluster.node(TARGET), status["targetPodUID"])
    tick_s = _tick_s(cluster, target, restored.begin_s)
    restore = cluster.get("restore", name)["status"]
    ended_s = datetime.fromisoformat(restore["phaseTime"]).timestamp()
    scheduled_s = ended_s - restore["durations"]["Restoring"]
    others = [
        _recorded(cluster.node(SOURCE), uid),
        Span(scheduled_s, restored.begin_s),  # kubelet's start; the checkpoint comes meanwhile
        restored,
    ]
    cluster.kubectl("delete", "migration", name, "--wait=false")
    cluster.kubectl("delete", "pod", target, "--grace-period=1", "--wait=false")
    return tick_s - begin_s - covered_s(others)


def chained(cluster: Cluster, name: str) -> float:
    """Seconds of the chain."""
    cluster.kubectl("cordon", TARGET)
    cluster.apply(pods.deployment(pods.counter(name)))
    cluster.wait("--for=condition=Available", f"deployment/{name}")
    cluster.kubectl("uncordon", TARGET)
    cluster.kubectl("cordon", SOURCE)
    (pod,) = cluster.get("pods", "-l", f"app={name}")["items"]
    own_s = _of_kubectl_s(cluster)
    begin_s = time.monotonic()
    asked = _job_done(cluster, f"{name}-checkpoint", SOURCE)
    cluster.kubectl("delete", "job", f"{name}-checkpoint", "--cascade=foreground")
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    asked += 2
    is_placed = False
    while not is_placed:
        assert time.monotonic() - begin_s < grit.TIMEOUT_S, f"no other pod of {name}"
        found = cluster.get("pods", "-l", f"app={name}")["items"]
        asked += 1
        is_placed = any(one["spec"].get("nodeName") == TARGET for one in found)
    asked += _job_done(cluster, f"{name}-restore", TARGET)
    taken_s = (
        time.monotonic() - begin_s - (asked - 1) * own_s
    )  # what is applied first is the user's
    cluster.kubectl("uncordon", SOURCE)
    cluster.kubectl("delete", "deployment", name, "--wait=false")
    cluster.kubectl("delete", "job", f"{name}-restore", "--wait=false")
    return taken_s + GATE_S / 2


def _job_done(cluster: Cluster, name: str, node: str) -> int:
    """Run a Job that does nothing on the node; how often kubectl was run for that."""
    container = {"name": "agent", "image": images.BUSYBOX, "command": ["true"]}
    spec = {"nodeName": node, "restartPolicy": "Never", "containers": [container]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"spec": spec}},
    }
    cluster.apply(job)
    cluster.wait("--for=condition=complete", f"job/{name}")
    return 2


def _of_kubectl_s(cluster: Cluster) -> float:
    """What a call of kubectl takes that waits for nothing."""
    begin_s = time.monotonic()
    for _ in range(5):
        cluster.get("namespace", "default")
    return (time.monotonic() - begin_s) / 5


def _migration(name: str) -> dict[str, Any]:
    return {
        "apiVersion": api.API_VERSION,
        "kind": "Migration",
        "metadata": {"name": name},
        "spec": {"podName": name},
    }


def _tick_s(cluster: Cluster, pod: str, after_s: float) -> float:
    """When the pod first printed after that; its log begins with what it printed elsewhere."""
    lines = cluster.pod_log(pod, "--timestamps").splitlines()
    printed = (datetime.fromisoformat(line.split()[0]).timestamp() for line in lines)
    return next(moment_s for moment_s in printed if moment_s > after_s)


def _recorded(node: Node, uid: str) -> Span:
    """When the newest that a node has recorded of a pod began and ended."""
    path = f"{RECORDS}/{uid}.json"
    written_s = float(node.run(["stat", "--format=%.6Y", path]).stdout)
    *_, newest = json.loads(node.run(["cat", path]).stdout)
    taken_s = max(phase["begin_s"] + phase["seconds"] for phase in newest["timeline"])
    return Span(written_s - taken_s, written_s)


def covered_s(spans: list[Span]) -> float:
    """Seconds in which there is at least one of the spans."""
    covered, end_s = 0.0, 0.0
    for span in sorted(spans):
        covered += max(0.0, span.end_s - max(span.begin_s, end_s))
        end_s = max(end_s, span.end_s)
    return covered
