"""What the tests of the manager make in a cluster, wait for, and look at."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

from grit_runtime.manager import retention
from integration.kubernetes import grit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from integration.kubernetes.cluster import Cluster

# What a test leaves, in the order in which nothing of it comes back.
KINDS = (
    "checkpointschedules,migrations,restores,checkpoints,"
    "daemonsets,deployments,replicasets,statefulsets,jobs,pods"
)


def made(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of kaito.sh."""
    meta = {"name": name}
    return {"apiVersion": "kaito.sh/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}


def until(what: str, is_so: Callable[[], Any], timeout_s: float = grit.TIMEOUT_S) -> Any:
    """What *is_so* says, once it is true of anything."""
    deadline = time.monotonic() + timeout_s
    while not (said := is_so()):
        assert time.monotonic() < deadline, f"not: {what}"
        time.sleep(0.2)
    return said


def living(kubernetes: Cluster, label: str) -> list[dict[str, Any]]:
    """The pods with that label that are not ending."""
    found = kubernetes.get("pods", "-l", label)["items"]
    return [one for one in found if "deletionTimestamp" not in one["metadata"]]


def uids(kubernetes: Cluster, label: str) -> list[str]:
    """The uids of the pods with that label, ending ones too."""
    return [one["metadata"]["uid"] for one in kubernetes.get("pods", "-l", label)["items"]]


def started(kubernetes: Cluster, made: dict[str, Any]) -> str:
    """Apply what makes one counting pod: its name, once it has counted to 20."""
    kubernetes.apply(made)
    label = f"app={made['metadata']['name']}"
    found = until("there is a pod", lambda: living(kubernetes, label))
    name: str = found[0]["metadata"]["name"]
    kubernetes.wait("--for=condition=Ready", f"pod/{name}")
    kubernetes.wait_for_log(name, "20")
    return name


def reached(kubernetes: Cluster, kind: str, name: str, phase: str) -> None:
    """Wait until the object has been in *phase*."""
    deadline = time.monotonic() + grit.TIMEOUT_S
    while True:
        words = ["get", kind, name, "-o", "json"]
        printed = kubernetes.kubectl(*words, check=False).stdout or "{}"
        found = json.loads(printed).get("status") or {}
        if any(one["type"] == phase for one in found.get("conditions") or ()):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def taken(kubernetes: Cluster, schedule: str, phase: str = "Checkpointed") -> list[dict[str, Any]]:
    """The schedule's checkpoints that are in the phase, oldest first."""
    uid = kubernetes.get("checkpointschedule", schedule)["metadata"]["uid"]
    found = kubernetes.get("checkpoints", "-l", f"{retention.SCHEDULE}={uid}")["items"]
    of_phase = [one for one in found if (one.get("status") or {}).get("phase") == phase]
    return sorted(of_phase, key=lambda one: str(one["status"]["completionTime"]))


def migrations(kubernetes: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = kubernetes.get("migrations")["items"]
    return found


def refused(kubernetes: Cluster, one: dict[str, Any]) -> str:
    """What the API server says to an object that it does not take."""
    done = kubernetes.kubectl("apply", "-f", "-", input=json.dumps(one), check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def evict(kubernetes: Cluster, pod: str, *, is_dry: bool = False) -> str:
    """Ask for the pod's eviction as `kubectl drain` does: what is said against it."""
    eviction = {
        "apiVersion": "policy/v1beta1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": "default"},
        "deleteOptions": {"dryRun": ["All"]} if is_dry else {},
    }
    path = f"/api/v1/namespaces/default/pods/{pod}/eviction"
    return kubernetes.kubectl(
        "create", "--raw", path, "-f", "-", input=json.dumps(eviction), check=False
    ).stderr


@contextmanager
def cordoned(kubernetes: Cluster, *nodes: str) -> Iterator[None]:
    """The nodes take no new pods meanwhile."""
    kubernetes.kubectl("cordon", *nodes)
    try:
        yield
    finally:
        kubernetes.kubectl("uncordon", *nodes)


@contextmanager
def full(kubernetes: Cluster, name: str) -> Iterator[None]:
    """While the block runs, no pod may be made."""
    meta, spec = {"name": name}, {"hard": {"pods": "0"}}
    kubernetes.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": spec})
    try:
        yield
    finally:
        kubernetes.kubectl("delete", "resourcequota", name)


def assert_goes_on(kubernetes: Cluster, pod: str, *container: str) -> None:
    """The pod goes on from another's count, and has never been started again."""
    assert_counts_on(kubernetes, pod, *container)
    statuses = kubernetes.get("pod", pod)["status"]["containerStatuses"]
    assert {status["restartCount"] for status in statuses} == {0}, statuses


def assert_goes_on_alone(kubernetes: Cluster, app: str, pod: str) -> None:
    """The pod goes on from another's count, and its app has no other that lives."""
    assert_goes_on(kubernetes, pod)
    (left,) = living(kubernetes, f"app={app}")
    assert left["metadata"]["name"] == pod


def assert_counts_on(kubernetes: Cluster, pod: str, *container: str) -> None:
    """The pod goes on from another's count, however often kubelet has tried that."""
    words = [f"--container={name}" for name in container]
    kubernetes.wait("--for=condition=Ready", f"pod/{pod}")
    stamp = kubernetes.pod_log(pod, "--timestamps", *words).partition(" ")[0]
    created = kubernetes.get("pod", pod)["metadata"]["creationTimestamp"]
    assert stamp[:19] < created[:19], "the log begins in this pod: it was started, not restored"
    first, *_, last = (int(line) for line in kubernetes.pod_log(pod, *words).split())
    kubernetes.wait_for_log(pod, str(max(last + 20, 40)), *words)
    logged = [int(line) for line in kubernetes.pod_log(pod, *words).split()]
    assert logged == list(range(first, first + len(logged)))


def assert_runs_on(kubernetes: Cluster, pod: str) -> None:
    """The source counts, and was not started again."""
    *_, last = (int(line) for line in kubernetes.pod_log(pod).split())
    kubernetes.wait_for_log(pod, str(last + 20))
    (container,) = kubernetes.get("pod", pod)["status"]["containerStatuses"]
    assert container["restartCount"] == 0


def assert_one_goes_on(
    kubernetes: Cluster, label: str, source: str, status: dict[str, Any]
) -> None:
    """What a Migration of *source* has ended in: its target goes on, or the source runs on, and
    nothing else with that label is left."""
    if status["phase"] == "Succeeded":
        assert_counts_on(kubernetes, status["targetPod"])
    else:
        assert f"pod default/{source} runs on" in status["message"], status
        assert_runs_on(kubernetes, source)
    (left,) = living(kubernetes, label)
    assert left["metadata"]["name"] == status.get("targetPod", source), status
