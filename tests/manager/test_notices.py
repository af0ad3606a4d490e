from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import notices

NOW = 1_000_000.0


def node(
    *taints: dict[str, str], conditions: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    listed = [{"type": key, "status": value} for key, value in (conditions or {}).items()]
    return {
        "metadata": {"name": "node-a", "annotations": {}},
        "spec": {"taints": list(taints), **spec},
        "status": {"conditions": listed},
    }


SPOT = {"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("told", "trigger"),
    [
        (node(), None),
        (node({"key": "node.kubernetes.io/unreachable"}), None),
        (node(SPOT), "SpotNotice"),
        (node({"key": "cloud.google.com/impending-node-termination"}), "SpotNotice"),
        (node(conditions={"PreemptScheduled": "True"}), "SpotNotice"),
        (node(conditions={"PreemptScheduled": "False"}), None),
        (node({"key": "karpenter.sh/disrupted"}), "NodeDrain"),
        (node({"key": "karpenter.sh/disruption", "value": "disrupting"}), "NodeDrain"),
        (node({"key": "karpenter.sh/disruption", "value": "candidate"}), None),
        (node(conditions={"DrainInProgress": "True"}), "NodeDrain"),
        (node(unschedulable=True), "NodeDrain"),
        (node(SPOT, unschedulable=True), "SpotNotice"),
    ],
)
def test_a_node_that_is_to_go_is_known_by_its_taints_and_conditions(
    told: dict[str, Any], trigger: str | None
) -> None:
    found = notices.notice(told, NOW)
    assert (found.trigger if found else None) == trigger


def test_the_end_counts_from_when_it_was_told() -> None:
    told = notices.notice(node({**SPOT, "timeAdded": "1970-01-01T00:10:00Z"}), NOW)
    assert told
    assert told.end == 600 + 120


def test_an_end_that_nobody_has_dated_counts_from_now() -> None:
    told = notices.notice(node(SPOT), NOW)
    assert told
    assert told.end == NOW + 120


def test_of_several_ends_the_first_counts() -> None:
    told = notices.notice(node(SPOT, conditions={"PreemptScheduled": "True"}), NOW)
    assert told == ("SpotNotice", "PreemptScheduled", NOW + 30)


def test_what_is_answered_is_open_again_when_it_changes() -> None:
    told = node(SPOT)
    assert notices.is_open(told)
    told["metadata"]["annotations"][notices.NOTICED] = "SpotNotice"
    assert not notices.is_open(told)
    told["spec"]["taints"] = []
    assert notices.is_open(told)


def pod(
    name: str, since: str, requests: dict[str, str] | None = None, priority: int = 0
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "creationTimestamp": since},
        "spec": {"priority": priority, "containers": [{"resources": {"requests": requests or {}}}]},
    }


def test_the_most_valuable_is_first() -> None:
    found = [
        pod("young", "2026-01-02T00:00:00Z"),
        pod("old", "2026-01-01T00:00:00Z"),
        pod("big", "2026-01-03T00:00:00Z", {"memory": "8Gi"}),
        pod("small", "2026-01-03T00:00:00Z", {"memory": "900Mi"}),
        pod("gpu", "2026-01-03T00:00:00Z", {"nvidia.com/gpu": "1"}),
        pod("gpus", "2026-01-03T00:00:00Z", {"nvidia.com/gpu": "8"}),
        pod("needed", "2026-01-03T00:00:00Z", priority=1000),
    ]
    names = [one["metadata"]["name"] for one in sorted(found, key=notices.rank)]
    assert names == ["needed", "gpus", "gpu", "big", "small", "old", "young"]
