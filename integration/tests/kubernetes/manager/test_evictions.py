"""Pods that are evicted move instead: `kubectl drain`, and what does not move."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grit_runtime.manager import evictions
from grit_runtime.manager.api import FAILED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.kubernetes.objects import (
    assert_goes_on,
    assert_runs_on,
    cordoned,
    evict,
    living,
    made,
    migrations,
    started,
    uids,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster

SOURCE, TARGET = NODES
DRAIN_S = 240

pytestmark = pytest.mark.usefixtures("alone")


def test_a_drain_of_a_node_moves_its_ten_pods_and_ends(kubernetes: Cluster, name: str) -> None:
    def made_here() -> list[dict[str, Any]]:
        """The pods of this test; those of another one may still be going."""
        every = kubernetes.get("pods")["items"]
        return [one for one in every if one["metadata"]["name"].startswith(f"{name}-")]

    many = pods.deployment(pods.counter(f"{name}-many"))
    many["spec"]["replicas"] = 5
    with cordoned(kubernetes, TARGET):
        kubernetes.apply(
            many,
            pods.job(pods.counter(f"{name}-job")),
            pods.stateful_set(pods.counter(f"{name}-set")),
            *(pods.counter(f"{name}-bare-{number}") for number in range(3)),
        )
        found = until("ten pods", lambda: own if len(own := made_here()) > 9 else None)
        names = [pod["metadata"]["name"] for pod in found]
        kubernetes.wait("--for=condition=Ready", *(f"pod/{pod}" for pod in names), timeout_s=90)
        for pod in names:
            kubernetes.wait_for_log(pod, "20")
    options = ("--ignore-daemonsets", "--force", "--delete-emptydir-data", f"--timeout={DRAIN_S}s")
    try:
        kubernetes.kubectl("drain", SOURCE, *options, timeout_s=DRAIN_S + 10)
        moved = migrations(kubernetes)
        assert len(moved) == 10
        assert {one["status"]["phase"] for one in moved} == {SUCCEEDED}
        here = made_here()
        assert {pod["spec"]["nodeName"] for pod in here} == {TARGET}
        for one in moved:
            assert_goes_on(kubernetes, one["status"]["targetPod"])
        assert len([one for one in here if "deletionTimestamp" not in one["metadata"]]) == 10
    finally:
        kubernetes.kubectl("uncordon", SOURCE)


def test_an_evicted_pod_moves_once_and_is_told_to_be_asked_again(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    assert evict(kubernetes, pod, is_dry=True).startswith("Warning: pod default/")
    assert migrations(kubernetes) == []
    for _ in range(2):
        said = evict(kubernetes, pod)
        assert "(TooManyRequests)" in said, said
        assert f"pod default/{pod} is being moved by Migration {pod}-evicted-" in said
    (one,) = migrations(kubernetes)
    status = grit.ended(kubernetes, "migration", one["metadata"]["name"], SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on(kubernetes, status["targetPod"])


def test_a_statefulset_s_pod_is_not_taken_for_the_one_that_has_gone(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.stateful_set(pods.counter(name)))
    assert "is being moved" in evict(kubernetes, pod)
    (one,) = migrations(kubernetes)
    status = grit.ended(kubernetes, "migration", one["metadata"]["name"], SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    said = evict(kubernetes, pod)  # which means the one that was there when it began
    assert "(NotFound)" in said, said
    assert len(migrations(kubernetes)) == 1
    assert_goes_on(kubernetes, pod)


def test_a_pod_that_says_so_is_let_go(kubernetes: Cluster, name: str) -> None:
    leaving = pods.counter(name, annotations={evictions.ON_EVICTION: evictions.LET_GO})
    pod = started(kubernetes, leaving)
    assert evict(kubernetes, pod) == ""
    kubernetes.wait("--for=delete", f"pod/{pod}")
    assert migrations(kubernetes) == []


@pytest.mark.parametrize("kind", ["pod", "deployment", "stateful_set"])
def test_a_pod_that_could_not_be_moved_is_let_go_and_was_not_harmed(
    kubernetes: Cluster, name: str, kind: str
) -> None:
    counter = pods.counter(name)
    pod = started(kubernetes, counter if kind == "pod" else getattr(pods, kind)(counter))
    with cordoned(kubernetes, *NODES):
        assert "is being moved" in evict(kubernetes, pod)
        (one,) = migrations(kubernetes)
        status = grit.ended(kubernetes, "migration", one["metadata"]["name"], FAILED)
        assert status["phase"] == FAILED, status
        assert "no node can take the pod" in status["message"]
        assert_runs_on(kubernetes, pod)
        said = evict(kubernetes, pod)
        assert said.startswith("Warning: "), said
        assert f"Migration {one['metadata']['name']} has failed" in said
    uid = status["sourcePodUID"]  # a StatefulSet's next pod has the name
    until("it has gone", lambda: uid not in uids(kubernetes, f"app={name}"))


def test_a_pod_that_could_not_be_moved_is_tried_again_by_a_later_drain(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))
    with cordoned(kubernetes, *NODES):
        assert "is being moved" in evict(kubernetes, pod)
        (one,) = migrations(kubernetes)
        failed = one["metadata"]["name"]
        assert grit.ended(kubernetes, "migration", failed, SUCCEEDED)["phase"] == FAILED
    found = kubernetes.get("migration", failed)
    found["status"]["completionTime"] = "2026-01-01T00:00:00Z"  # as if it were long ago
    path = f"/apis/kaito.sh/v1alpha1/namespaces/default/migrations/{failed}/status"
    kubernetes.kubectl("replace", "--raw", path, "-f", "-", input=json.dumps(found))
    assert f"is being moved by Migration {failed}-2" in evict(kubernetes, pod)
    status = grit.ended(kubernetes, "migration", f"{failed}-2", SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on(kubernetes, status["targetPod"])


def test_a_daemonset_s_pod_and_a_pod_of_another_runtime_are_let_go(
    kubernetes: Cluster, name: str
) -> None:
    kubernetes.apply(pods.daemon_set(pods.counter(name)))
    plain = pods.counter(f"{name}-plain")
    del plain["spec"]["runtimeClassName"]
    pod = started(kubernetes, plain)
    of_set = until("it is there", lambda: living(kubernetes, f"app={name}"))
    for one in (pod, of_set[0]["metadata"]["name"]):
        kubernetes.wait("--for=condition=Ready", f"pod/{one}")
        said = evict(kubernetes, one)
        assert "Error" not in said, said
        kubernetes.wait("--for=delete", f"pod/{one}")
    assert migrations(kubernetes) == []
    kubernetes.kubectl("delete", "daemonset", name)


def test_a_pod_that_is_being_moved_already_waits_for_that_migration(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Migration", name, podName=pod))
    said = evict(kubernetes, pod)
    assert f"is being moved by Migration {name}" in said, said
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert len(migrations(kubernetes)) == 1
