"""Probes that have no patience, of pods that stand still."""

from __future__ import annotations

import json

from grit_runtime.manager.api import CHECKPOINTED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import (
    assert_goes_on_alone,
    made,
    started,
    until,
)
from integration.pods import workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from integration.kubernetes.cluster import Cluster

# A counter that answers probes, which a frozen one does not.
ANSWERS = f"""
import http.server, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("", 8080), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
{workload.COUNTER}
"""


PROBES = ("livenessProbe", "readinessProbe")


def probed(name: str) -> dict[str, Any]:
    """A counter that is killed as soon as it does not answer once, after it has begun to."""
    pod = pods.counter(name, annotations={"grit.dev/tcp": "close"})
    (container,) = pod["spec"]["containers"]
    container["command"][2] = ANSWERS
    probe = {"httpGet": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5}
    container |= {kind: probe | {"failureThreshold": 1} for kind in PROBES}
    container["startupProbe"] = probe | {"failureThreshold": 60}
    return pod


def test_a_pod_that_its_probes_kill_meanwhile_has_moved(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.deployment(probed(name)))
    kubernetes.apply(made("Migration", name, podName=pod))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on_alone(kubernetes, name, status["targetPod"])


def test_a_held_pod_that_its_probes_have_killed_goes_on_from_its_checkpoint(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, probed(name))

    def container() -> Any:
        (status,) = kubernetes.get("pod", pod)["status"]["containerStatuses"]
        return status

    kubernetes.apply(made("Checkpoint", name, podName=pod, after="frozen"))
    status = grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    assert status["phase"] == CHECKPOINTED, status
    counted = max(map(int, kubernetes.pod_log(pod).split()))
    until("it is killed", lambda: "running" not in container()["state"])
    kubernetes.kubectl("delete", "checkpoint", name, "--wait=false")
    until("it runs again", lambda: "running" in container()["state"])
    kubernetes.wait_for_log(pod, str(counted + 20))
    node = kubernetes.node(kubernetes.get("pod", pod)["spec"]["nodeName"])
    (*_, last) = json.loads(node.run(["grit", "status", "--json", f"default/{pod}"]).stdout)
    assert last["outcome"] == "restored", last
    until("it is removed", lambda: not kubernetes.get("checkpoints")["items"])
