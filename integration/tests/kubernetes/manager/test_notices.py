"""Nodes that are to go: what becomes of their pods, and what is kept of those that stay."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest

from grit_runtime.manager import notices
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.kubernetes.objects import (
    assert_goes_on,
    cordoned,
    evict,
    living,
    made,
    migrations,
    started,
    taken,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster

SOURCE, TARGET = NODES
SPOT = "aws-node-termination-handler/spot-itn"
STORE = {"url": "file:///var/lib/checkpoints"}  # of each node

pytestmark = pytest.mark.usefixtures("alone")


@contextmanager
def tainted(kubernetes: Cluster) -> Iterator[None]:
    """The source gets a spot notice."""
    kubernetes.kubectl("taint", "node", SOURCE, f"{SPOT}=event-1:NoSchedule")
    try:
        yield
    finally:
        kubernetes.kubectl("taint", "node", SOURCE, f"{SPOT}-")


def noted(kubernetes: Cluster) -> str | None:
    found: str | None = kubernetes.get("node", SOURCE)["metadata"]["annotations"].get(
        notices.NOTICED
    )
    return found


def of_each_node(kubernetes: Cluster, name: str) -> str:
    """Make a counter on each node: the source's, which counts."""
    kubernetes.apply(pods.daemon_set(pods.counter(name)))

    def here() -> list[str]:
        return [
            pod["metadata"]["name"]
            for pod in living(kubernetes, f"app={name}")
            if pod["spec"].get("nodeName") == SOURCE
        ]

    (pod,) = until("it is there", here)
    kubernetes.wait("--for=condition=Ready", f"pod/{pod}")
    kubernetes.wait_for_log(pod, "20")
    return str(pod)


def test_after_a_spot_notice_pods_move_and_the_others_are_kept(
    kubernetes: Cluster, name: str
) -> None:
    stays = of_each_node(kubernetes, f"{name}-stays")
    selector = {"matchLabels": {"app": f"{name}-stays"}}
    schedule = made(
        "CheckpointSchedule", name, selector=selector, triggers=["SpotNotice"], storage=STORE
    )
    kubernetes.apply(schedule)
    moves = started(kubernetes, pods.counter(name, node=""))
    if kubernetes.get("pod", moves)["spec"]["nodeName"] != SOURCE:
        kubernetes.apply(made("Migration", name, podName=moves, nodeName=SOURCE))
        moves = grit.ended(kubernetes, "migration", name, "Succeeded")["targetPod"]
        kubernetes.wait("--for=condition=Ready", f"pod/{moves}")
    with tainted(kubernetes):
        (kept,) = until("it is kept", lambda: taken(kubernetes, name))
        assert kept["status"]["podName"] == stays
        assert kept["status"]["dataPath"] == f"{STORE['url']}/default/{kept['metadata']['name']}"

        def moved() -> dict[str, Any] | None:
            return next(
                (one for one in migrations(kubernetes) if "-evicted-" in one["metadata"]["name"]),
                None,
            )

        one = until("it moves", moved)
        status = grit.ended(kubernetes, "migration", one["metadata"]["name"], "Succeeded")
        assert (status["phase"], status["targetNode"]) == ("Succeeded", TARGET), status
        assert_goes_on(kubernetes, status["targetPod"])
        until("it is noted", lambda: noted(kubernetes) == "SpotNotice")
        of_node = f"involvedObject.name={SOURCE},reason=SpotNotice"
        told = until(
            "it is told",
            lambda: kubernetes.get("events", "-A", "--field-selector", of_node)["items"],
        )
        assert told[-1]["message"].startswith(f"{SPOT}: 1 of 2 pods have moved; left: default/")
    until("it is forgotten", lambda: noted(kubernetes) is None)


def test_a_cordon_takes_one_checkpoint_each_time(kubernetes: Cluster, name: str) -> None:
    pod = of_each_node(kubernetes, name)
    selector = {"matchLabels": {"app": name}}
    kubernetes.apply(made("CheckpointSchedule", name, selector=selector, triggers=["NodeDrain"]))

    def cordon() -> None:
        with cordoned(kubernetes, SOURCE):
            until("it is noted", lambda: noted(kubernetes) == "NodeDrain")
        until("it is forgotten", lambda: noted(kubernetes) is None)

    cordon()
    until("it is taken", lambda: len(taken(kubernetes, name)) == 1)
    cordon()
    until("another is taken", lambda: len(taken(kubernetes, name)) == 2)
    assert {one["status"]["podName"] for one in taken(kubernetes, name)} == {pod}


def test_a_pod_that_is_let_go_leaves_a_last_checkpoint(kubernetes: Cluster, name: str) -> None:
    pod = of_each_node(kubernetes, name)
    selector = {"matchLabels": {"app": name}}
    kubernetes.apply(made("CheckpointSchedule", name, selector=selector, triggers=["PodEviction"]))
    until("the schedule is there", lambda: kubernetes.get("cksched", name))

    def is_let_go() -> bool:
        said = evict(kubernetes, pod)
        is_refused = f"pod default/{pod} is being checkpointed by Checkpoint" in said
        assert is_refused or "Error" not in said
        return not is_refused

    until("it is let go", is_let_go)
    (kept,) = taken(kubernetes, name)
    assert kept["status"]["podName"] == pod
    kubernetes.wait("--for=delete", f"pod/{pod}")
