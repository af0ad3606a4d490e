"""What goes wrong while a pod is moved: its source runs on, or its target has been verified."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from grit_runtime.manager.api import CHECKPOINTED, RESTORED, SUBMITTED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import (
    assert_goes_on,
    assert_goes_on_alone,
    assert_runs_on,
    cordoned,
    full,
    living,
    made,
    reached,
    refused,
    started,
    until,
)
from integration.node import images, volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager


@pytest.fixture
def without_criu(kubernetes: Cluster) -> Iterator[None]:
    """node-b cannot restore, which nobody knows before it is tried."""
    node = kubernetes.node("node-b")
    node.run(["mv", "/usr/sbin/criu", "/usr/sbin/criu.away"])
    node.run(
        ["sh", "-c", "printf '#!/bin/sh\\nexit 1\\n' >/usr/sbin/criu; chmod 755 /usr/sbin/criu"]
    )
    yield
    node.run(["mv", "/usr/sbin/criu.away", "/usr/sbin/criu"])


@pytest.mark.usefixtures("without_criu")
@pytest.mark.parametrize("kind", ["counter", "deployment"])
def test_a_target_that_cannot_restore_gives_the_pod_back(
    kubernetes: Cluster, name: str, kind: str
) -> None:
    counter = pods.counter(name)
    kubernetes.kubectl("cordon", "node-b")
    try:
        pod = started(kubernetes, counter if kind == "counter" else pods.deployment(counter))
    finally:
        kubernetes.kubectl("uncordon", "node-b")
    kubernetes.apply(made("Migration", name, podName=pod))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == "Failed", status
    assert f"pod default/{pod} runs on, on node node-a" in status["message"]
    assert_runs_on(kubernetes, pod)
    left = [one["metadata"]["name"] for one in living(kubernetes, f"app={name}")]
    assert left == [pod]


def test_a_pod_that_is_not_replaced_in_time_runs_on(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    with full(kubernetes, name):
        spec = {"podName": pod, "autoMigration": True, "timeoutSeconds": 15}
        kubernetes.apply(made("Checkpoint", name, **spec))
        status = grit.ended(kubernetes, "checkpoint", name, SUBMITTED)
        assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded"), status
        assert f"pod default/{pod} runs on" in status["message"]
        assert_runs_on(kubernetes, pod)
    (left,) = living(kubernetes, f"app={name}")
    assert left["metadata"]["name"] == pod
    assert left["metadata"]["ownerReferences"]


def test_a_migration_without_time_for_its_checkpoint_leaves_no_pod_held(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Migration", name, podName=pod, timeoutSeconds=1))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded"), status
    assert_runs_on(kubernetes, pod)


def test_a_checkpoint_that_is_deleted_while_its_pod_moves_gives_the_pod_back(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    with full(kubernetes, name):
        kubernetes.apply(made("Checkpoint", name, podName=pod, autoMigration=True))
        reached(kubernetes, "checkpoint", name, "Submitting")
        kubernetes.kubectl("delete", "checkpoint", name)
        assert_runs_on(kubernetes, pod)
        (left,) = living(kubernetes, f"app={name}")
        assert left["metadata"]["ownerReferences"]


def test_a_restore_that_was_used_is_not_taken_for_a_later_one_of_its_name(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Checkpoint", name, podName=pod))
    grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    kubernetes.kubectl("delete", "pod", pod)
    pod = grit.ended(kubernetes, "restore", name, RESTORED)["targetPod"]
    kubernetes.kubectl("delete", "checkpoint", name)
    kubernetes.apply(made("Checkpoint", name, podName=pod, autoMigration=True))
    status = grit.ended(kubernetes, "checkpoint", name, SUBMITTED)
    assert (status["phase"], status["reason"]) == ("Failed", "AlreadyExists"), status
    assert_runs_on(kubernetes, pod)


def test_of_a_pod_that_lives_on_no_other_is_made_from_an_older_checkpoint(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    for number in range(2):
        kubernetes.apply(made("Checkpoint", f"{name}-{number}", podName=pod))
        grit.ended(kubernetes, "checkpoint", f"{name}-{number}", CHECKPOINTED)
    kubernetes.kubectl("delete", "pod", pod)
    first = grit.ended(kubernetes, "restore", f"{name}-1", RESTORED)["targetPod"]
    kubernetes.kubectl("scale", "deployment", name, "--replicas=2")
    kubernetes.wait("--for=condition=Available", f"deployment/{name}")
    (second,) = [
        one for one in living(kubernetes, f"app={name}") if one["metadata"]["name"] != first
    ]
    assert "grit.dev/checkpoint" not in (second["metadata"].get("annotations") or {})
    assert_goes_on(kubernetes, first)


@pytest.mark.parametrize("kind", ["checkpoint", "migration"])
def test_a_migration_of_which_something_is_deleted_gives_the_pod_back(
    kubernetes: Cluster, name: str, kind: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    with full(kubernetes, name):
        kubernetes.apply(made("Migration", name, podName=pod))
        reached(kubernetes, "migration", name, "Restoring")
        kubernetes.kubectl("delete", kind, name, "--cascade=foreground")
        assert_runs_on(kubernetes, pod)
        (left,) = living(kubernetes, f"app={name}")
        assert left["metadata"]["ownerReferences"]
        if kind == "checkpoint":
            status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
            assert f"pod default/{pod} runs on" in status["message"], status


def test_a_target_for_which_its_node_has_no_image_gives_the_pod_back(
    kubernetes: Cluster, name: str
) -> None:
    counter = pods.counter(name)
    (container,) = counter["spec"]["containers"]
    container["image"] = f"localhost/{name}:1"
    tag = ["ctr", "-n", "k8s.io", "images", "tag", images.PYTHON, container["image"]]
    kubernetes.node("node-a").run(tag)
    with cordoned(kubernetes, "node-b"):
        pod = started(kubernetes, counter)
    kubernetes.apply(made("Migration", name, podName=pod))
    # A pod without containers is ended by a kubelet of 1.20 when it looks at it again.
    status = grit.ended(kubernetes, "migration", name, timeout_s=2 * grit.TIMEOUT_S)
    assert status["phase"] == "Failed", status
    assert "is not restored: container counter: " in status["message"]
    assert f"localhost/{name}:1" in status["message"]
    assert_runs_on(kubernetes, pod)


@pytest.mark.parametrize("phase", ["Pending", "Checkpointing", "Placing", "Restoring"])
def test_a_manager_that_is_killed_goes_on(
    kubernetes: Cluster, manager: Manager, name: str, phase: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Migration", name, podName=pod))
    reached(kubernetes, "migration", name, phase)
    manager.kill()
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on(kubernetes, status["targetPod"])
    left = [one["metadata"]["name"] for one in living(kubernetes, f"app={name}")]
    assert left == [status["targetPod"]]


def test_an_agent_that_is_killed_takes_the_checkpoint_again(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.counter(name))
    node = kubernetes.get("pod", pod)["spec"]["nodeName"]
    kubernetes.apply(made("Migration", name, podName=pod))
    reached(kubernetes, "checkpoint", name, "Checkpointing")
    kubernetes.node(node).run(["pkill", "-KILL", "-f", "grit agent run"])
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on(kubernetes, status["targetPod"])


# Longer than the manager's Lease is given up.
@pytest.mark.parametrize("seconds", [15, 60] if "GRIT_LONG" in os.environ else [15])
def test_an_api_server_that_does_not_answer_for_a_while_is_waited_for(
    kubernetes: Cluster, name: str, seconds: int
) -> None:
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Migration", name, podName=pod))
    reached(kubernetes, "migration", name, "Checkpointing")
    with kubernetes.plane.stopped("kube-apiserver"):
        time.sleep(seconds)
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on(kubernetes, status["targetPod"])


def test_a_full_volume_leaves_the_pod_running(
    kubernetes: Cluster, name: str, tmp_path: Path
) -> None:
    point = Path("/srv/small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        for node in kubernetes.nodes:
            volume.mount(tmp_path, node, point)
        pod = started(kubernetes, pods.counter(name))
        storage = {"url": f"file://{point}"}
        spec = {"podName": pod, "after": "frozen", "storage": storage}
        kubernetes.apply(made("Checkpoint", name, **spec))
        status = grit.ended(kubernetes, "checkpoint", name, "Checkpointed")
        assert (status["phase"], status["reason"]) == ("Failed", "NoRoom"), status
        assert_runs_on(kubernetes, pod)
    finally:
        for node in kubernetes.nodes:
            node.run(["umount", "--lazy", str(point)])
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_daemon_sets_pod_is_refused_when_it_is_asked_for(kubernetes: Cluster, name: str) -> None:
    kubernetes.apply(pods.daemon_set(pods.counter(name)))
    deadline = time.monotonic() + grit.TIMEOUT_S
    while len(found := living(kubernetes, f"app={name}")) < 2 or not all(
        one["status"]["phase"] == "Running" for one in found
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    pod = found[0]["metadata"]["name"]
    migration = made("Migration", name, podName=pod)
    assert "its pods belong to their nodes" in refused(kubernetes, migration)
    kubernetes.kubectl("delete", "daemonset", name, "--wait=false")


def test_a_template_that_was_changed_is_named(kubernetes: Cluster, name: str) -> None:
    """The Restore waits, and says which field of the new pod differs."""
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Checkpoint", name, podName=pod))
    grit.ended(kubernetes, "checkpoint", name, "Checkpointed")
    changed = pods.counter(f"{name}-changed")
    changed["spec"]["containers"][0]["env"] = [{"name": "RATE", "value": "2"}]
    selector = {"matchLabels": changed["metadata"]["labels"]}
    kubernetes.apply(made("Restore", name, checkpointName=name, selector=selector))
    kubernetes.apply(changed)
    deadline = time.monotonic() + grit.TIMEOUT_S
    while "env[RATE]" not in kubernetes.kubectl("describe", "restore", name).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert kubernetes.get("restore", name)["status"]["phase"] == "Created"


def test_a_namespace_that_goes_takes_all_with_it(kubernetes: Cluster, name: str) -> None:
    kubernetes.kubectl("create", "namespace", name)
    deadline = time.monotonic() + grit.TIMEOUT_S
    while kubernetes.kubectl("get", "sa", "default", "-n", name, check=False).returncode:
        assert time.monotonic() < deadline
    counter = pods.counter(name)
    counter["metadata"]["namespace"] = name
    kubernetes.apply(counter)
    kubernetes.wait("--for=condition=Ready", f"pod/{name}", "-n", name)
    migration = made("Migration", name, podName=name)
    migration["metadata"]["namespace"] = name
    kubernetes.apply(migration)
    time.sleep(1)
    kubernetes.kubectl("delete", "namespace", name, timeout_s=150)


def test_a_pod_that_a_quota_refuses_leaves_its_state_to_the_next(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Checkpoint", name, podName=pod))
    grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    with full(kubernetes, name):
        kubernetes.kubectl("delete", "pod", pod, "--wait=false")
        until("a pod was to come", lambda: kubernetes.get("restores")["items"])
    status = grit.ended(kubernetes, "restore", name, RESTORED)
    assert status["phase"] == RESTORED, status
    assert_goes_on_alone(kubernetes, name, status["targetPod"])


def test_a_checkpoint_that_is_made_anew_under_its_name_is_restored(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    for restore in (name, f"{name}-2"):
        kubernetes.kubectl("delete", "checkpoint", name, "--ignore-not-found")
        kubernetes.apply(made("Checkpoint", name, podName=pod))
        grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
        kubernetes.kubectl("delete", "pod", pod)
        (new,) = until("there is another", lambda: living(kubernetes, f"app={name}"))
        pod = new["metadata"]["name"]
        assert_goes_on(kubernetes, pod)
        assert grit.ended(kubernetes, "restore", restore, RESTORED)["targetPod"] == pod
