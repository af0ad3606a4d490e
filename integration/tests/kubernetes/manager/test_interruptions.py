"""Pods that are preempted, or whose Job is suspended, leave a last checkpoint and go on from it."""

from __future__ import annotations

import json
import subprocess
import sys
from subprocess import PIPE
from typing import Any

import pytest

from grit_runtime.manager import names
from grit_runtime.manager.api import RESTORED
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.kubernetes.objects import (
    assert_goes_on,
    cordoned,
    living,
    made,
    started,
    taken,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster

SOURCE, TARGET = NODES
RETRY_S = 150  # a scheduler of 1.20 comes back to a pod that it could not place after 60 to 90 s

POST = f"""
import ssl, sys
from urllib.request import Request, urlopen
url = "https://127.0.0.1:{names.WEBHOOK_PORT}{names.JOB_PATH}"
body, headers = sys.stdin.buffer.read(), {{"Content-Type": "application/json"}}
with urlopen(Request(url, body, headers), context=ssl._create_unverified_context()) as answer:
    print(answer.read().decode())
"""

pytestmark = pytest.mark.usefixtures("manager", "alone")


def assert_goes_on_from(kubernetes: Cluster, checkpoint: dict[str, Any], pod: str) -> None:
    """The pod goes on, and from that checkpoint."""
    status = grit.ended(kubernetes, "restore", checkpoint["metadata"]["name"], RESTORED)
    assert (status["phase"], status["targetPod"]) == (RESTORED, pod), status
    assert_goes_on(kubernetes, pod)


def test_a_pod_that_is_preempted_goes_on_when_there_is_room_again(
    kubernetes: Cluster, name: str
) -> None:
    cores = int(kubernetes.get("node", SOURCE)["status"]["allocatable"]["cpu"])
    most = f"{cores * 1000 * 2 // 3}m"  # two of these do not fit
    kubernetes.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": f"{name}-urgent"},
            "value": 1000,
        },
    )
    with cordoned(kubernetes, TARGET):
        victim = started(kubernetes, pods.deployment(pods.wanting(pods.counter(name), most)))
        selector = {"matchLabels": {"app": name}}
        schedule = made("CheckpointSchedule", name, selector=selector, triggers=["Preemption"])
        kubernetes.apply(schedule)
        urgent = pods.wanting(pods.counter(f"{name}-urgent"), most, f"{name}-urgent")
        kubernetes.apply(urgent)
        kubernetes.wait("--for=delete", f"pod/{victim}", timeout_s=RETRY_S)
        (kept,) = taken(kubernetes, name)
        assert kept["status"]["podName"] == victim
        kubernetes.wait("--for=condition=Ready", f"pod/{name}-urgent")
        (waiting,) = living(kubernetes, f"app={name}")
        assert waiting["status"]["phase"] == "Pending"
        kubernetes.kubectl("delete", "pod", f"{name}-urgent")
        assert_goes_on_from(kubernetes, kept, waiting["metadata"]["name"])
    kubernetes.kubectl("delete", "priorityclass", f"{name}-urgent")


def suspend(kubernetes: Cluster, job: str) -> str:
    """Ask as an API server does that is told to suspend the Job: why it may not be, if it may not.

    Jobs of 1.20 have no such field, so the server drops it, and the question is put by hand.
    """
    now = kubernetes.get("job", job)
    review = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "suspension",
            "kind": {"group": "batch", "version": "v1", "kind": "Job"},
            "namespace": "default",
            "name": job,
            "operation": "UPDATE",
            "userInfo": {"username": "system:serviceaccount:kueue-system:kueue"},
            "oldObject": now,
            "object": {**now, "spec": {**now["spec"], "suspend": True}},
        },
    }
    argv = [*kubernetes.plane.enter_argv(), sys.executable, "-c", POST]
    answer = subprocess.run(argv, input=json.dumps(review), stdout=PIPE, text=True, check=True)
    response = json.loads(answer.stdout)["response"]
    assert response["allowed"] == ("status" not in response)
    return str(response["status"]["message"]) if "status" in response else ""


def test_a_job_is_suspended_once_its_pod_is_checkpointed_and_goes_on_later(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.job(pods.counter(name)))
    assert suspend(kubernetes, name) == ""  # no schedule: as if there were no grit
    selector = {"matchLabels": {"app": name}}
    schedule = made("CheckpointSchedule", name, selector=selector, triggers=["JobSuspension"])
    kubernetes.apply(schedule)
    until("it may be suspended", lambda: suspend(kubernetes, name) == "")
    (kept,) = taken(kubernetes, name)
    assert kept["status"]["podName"] == pod
    assert suspend(kubernetes, name) == ""  # and is not checkpointed again
    assert len(taken(kubernetes, name)) == 1
    kubernetes.kubectl("delete", "pod", pod, "--wait=false")  # as the Job's controller does it
    (new,) = until(
        "the Job has another pod",
        lambda: [
            one for one in living(kubernetes, f"app={name}") if one["metadata"]["name"] != pod
        ],
    )
    assert_goes_on_from(kubernetes, kept, new["metadata"]["name"])


def test_a_deletion_by_anybody_else_is_not_held_up(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("CheckpointSchedule", name, podName=pod, triggers=["Preemption"]))
    until("the schedule is there", lambda: kubernetes.get("cksched", name))
    kubernetes.kubectl("delete", "pod", pod)
    assert kubernetes.get("checkpoints")["items"] == []
