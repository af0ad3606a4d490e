"""Checkpoints that are taken again and again, and those that go."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from grit_runtime.manager import schedules
from grit_runtime.manager.api import CHECKPOINTED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import made, started, taken, until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager


def test_each_pod_of_a_schedule_is_checkpointed_and_the_newest_stay(
    kubernetes: Cluster, name: str
) -> None:
    deployment = pods.deployment(pods.counter(name))
    deployment["spec"]["replicas"] = 2
    started(kubernetes, deployment)
    selector = {"matchLabels": {"app": name}}
    schedule = made("CheckpointSchedule", name, selector=selector, interval="4s", keep=2)
    kubernetes.apply(schedule)
    first = until("two are sealed", lambda: taken(kubernetes, name)[1:])

    def first_have_gone() -> bool:
        here = {one["metadata"]["name"] for one in kubernetes.get("checkpoints")["items"]}
        return not here & {one["metadata"]["name"] for one in first}

    until("the first are pushed out", first_have_gone)
    kubernetes.kubectl(
        "patch", "cksched", name, "--type=merge", "-p", '{"spec": {"interval": "1h"}}'
    )
    until(
        "two of each pod are left",
        lambda: (
            sorted(one["status"]["podName"] for one in taken(kubernetes, name))
            == sorted(2 * [pod["metadata"]["name"] for pod in kubernetes.get("pods")["items"]])
        ),
    )

    def status() -> dict[str, Any]:
        now: dict[str, Any] = kubernetes.get("cksched", name)["status"]
        return now

    newest = taken(kubernetes, name)[-1]["metadata"]["name"]
    until("it names the newest", lambda: status()["lastCheckpoint"] == newest)
    now = status()
    later = datetime.fromisoformat(now["nextTime"]) - datetime.fromisoformat(now["lastTime"])
    assert later == timedelta(hours=1)
    kubernetes.wait("--for=condition=Ready", f"cksched/{name}")


def test_what_was_missed_without_a_manager_is_made_up_for_once(
    kubernetes: Cluster, manager: Manager, name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("CheckpointSchedule", name, podName=pod, cron="0 0 1 1 *"))
    until(
        "it is planned", lambda: kubernetes.get("cksched", name).get("status", {}).get("nextTime")
    )
    assert taken(kubernetes, name) == []
    manager.stop()
    # As if it had been away for years.
    long_ago = (datetime.now(UTC) - timedelta(days=800)).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = kubernetes.get("cksched", name)
    found["status"]["lastTime"] = long_ago
    path = f"/apis/kaito.sh/v1alpha1/namespaces/default/checkpointschedules/{name}/status"
    kubernetes.kubectl("replace", "--raw", path, "-f", "-", input=json.dumps(found))
    manager.start()
    until("it is taken", lambda: taken(kubernetes, name))
    now = until(
        "the next is planned",
        lambda: (
            status
            if (status := kubernetes.get("cksched", name)["status"])["lastTime"] != long_ago
            else None
        ),
    )
    assert datetime.fromisoformat(now["nextTime"]) > datetime.now(UTC)
    assert len(taken(kubernetes, name)) == 1


def test_a_pod_is_checkpointed_when_its_annotation_asks_for_it(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("CheckpointSchedule", name, podName=pod, triggers=["Annotation"]))

    def ask() -> None:
        kubernetes.kubectl("annotate", "pod", pod, f"{schedules.ASKED}=please")

    ask()
    until("it is taken", lambda: taken(kubernetes, name))
    annotations = kubernetes.get("pod", pod)["metadata"].get("annotations") or {}
    assert schedules.ASKED not in annotations
    ask()
    until("another is taken", lambda: taken(kubernetes, name)[1:])


def test_a_schedule_says_that_it_selects_nothing(kubernetes: Cluster, name: str) -> None:
    kubernetes.apply(made("CheckpointSchedule", name, podName="nobody", interval="2s"))
    kubernetes.wait("--for=condition=Ready=False", f"cksched/{name}")
    now = kubernetes.get("cksched", name)["status"]
    assert now["reason"] == "NotFound"
    assert "no running pod" in now["message"]


def test_cron_with_six_fields_is_refused(kubernetes: Cluster, name: str) -> None:
    schedule = made("CheckpointSchedule", name, podName="nobody", cron="0 0 3 * * *")
    refused = kubernetes.kubectl("apply", "-f", "-", input=json.dumps(schedule), check=False)
    assert "cron: expected five fields" in refused.stderr


def test_a_checkpoint_that_a_restore_needs_is_not_pushed_out(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))

    def checkpointed(number: int) -> None:
        kept = {"keep": 1}
        kubernetes.apply(made("Checkpoint", f"{name}-{number}", podName=pod, retention=kept))
        status = grit.ended(kubernetes, "checkpoint", f"{name}-{number}", CHECKPOINTED)
        assert status["phase"] == CHECKPOINTED, status

    def left() -> list[str]:
        return [one["metadata"]["name"] for one in kubernetes.get("checkpoints")["items"]]

    checkpointed(1)
    selector = {"matchLabels": {"app": "nobody"}}
    kubernetes.apply(made("Restore", name, checkpointName=f"{name}-1", selector=selector))
    grit.ended(kubernetes, "restore", name, "Created")
    checkpointed(2)
    checkpointed(3)
    until("the second has gone", lambda: left() == [f"{name}-1", f"{name}-3"])
    kubernetes.kubectl("delete", "restore", name)
    checkpointed(4)
    until("all but the newest have gone", lambda: left() == [f"{name}-4"])


def test_a_checkpoint_goes_when_it_is_as_old_as_it_may_be(kubernetes: Cluster, name: str) -> None:
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Checkpoint", name, podName=pod, retention={"maxAge": "8s"}))
    node = kubernetes.node(grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)["nodeName"])
    path = f"/mnt/grit-agent/default/{name}"
    assert node.run(["ls", path]).stdout
    kubernetes.wait("--for=delete", f"checkpoint/{name}")
    assert "No such file" in node.run(["ls", path], check=False).stderr


def test_a_checkpoint_that_goes_leaves_a_pod_held_that_another_holds(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Checkpoint", f"{name}-old", podName=pod))
    grit.ended(kubernetes, "checkpoint", f"{name}-old", CHECKPOINTED)
    kubernetes.apply(made("Checkpoint", f"{name}-held", podName=pod, after="frozen"))
    grit.ended(kubernetes, "checkpoint", f"{name}-held", CHECKPOINTED)
    kubernetes.kubectl("delete", "checkpoint", f"{name}-old")
    kubernetes.apply(made("Checkpoint", f"{name}-more", podName=pod))
    status = grit.ended(kubernetes, "checkpoint", f"{name}-more", CHECKPOINTED)
    assert status["reason"] == "PodHeld", status
    counted = len(kubernetes.pod_log(pod).split())
    kubernetes.kubectl("delete", "checkpoint", f"{name}-held")
    kubernetes.wait_for_log(pod, str(counted + 40))
