"""What the manager says to Evictions that are objects, and which pods have it asked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from grit_runtime.manager import evictions, responder

NOW = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)
OTHER = {"name": "acme.io/copier", "priority": 500}


def pod(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "trainer", "annotations": annotations or {}}, "spec": spec}


def eviction(state: str, **told: str) -> dict[str, Any]:
    return {
        "metadata": {"resourceVersion": "7"},
        "status": {
            "targetResponders": [
                {**responder.OURS, "state": state},
                {**OTHER, "state": "Inactive"},
            ],
            "responders": [{"name": responder.NAME, **told}, {"name": OTHER["name"]}],
        },
    }


def test_a_new_pod_names_the_manager_beside_others() -> None:
    (step,) = responder.patch(pod(evictionResponders=[OTHER]))
    assert step == {
        "op": "add",
        "path": "/spec/evictionResponders",
        "value": [OTHER, responder.OURS],
    }
    (step,) = responder.patch(pod())
    assert step["value"] == [responder.OURS]


@pytest.mark.parametrize(
    "other",
    [
        pod({evictions.ON_EVICTION: evictions.LET_GO}),
        pod(evictionResponders=[responder.OURS]),
        pod(evictionResponders=[OTHER] * 10),
        pod(schedulingGroup={"name": "gang"}),
    ],
)
def test_a_pod_that_may_not_name_it_or_does_is_left_alone(other: dict[str, Any]) -> None:
    assert responder.patch(other) == ()


def test_its_turn_is_when_it_is_active_and_not_done() -> None:
    assert responder.is_ours(eviction("Active"))
    for state in ("Inactive", "Interrupted", "Canceled", "Completed"):
        assert not responder.is_ours(eviction(state))
    assert not responder.is_ours(eviction("Active", completionTime="2026-11-30T11:00:00Z"))
    assert not responder.is_ours({"metadata": {}})


def test_what_it_says_leaves_what_others_say() -> None:
    found = eviction("Active", startTime="2026-11-30T11:59:00Z")
    told = responder.responses(found, NOW, "moving", is_done=False)
    own, other = told["status"]["responders"]
    assert own == {
        "name": responder.NAME,
        "startTime": "2026-11-30T11:59:00Z",
        "heartbeatTime": "2026-11-30T12:00:00Z",
        "message": "moving",
    }
    assert other == {"name": OTHER["name"]}
    assert told["metadata"]["resourceVersion"] == "7"
    done, _ = responder.responses(found, NOW, "gone", is_done=True)["status"]["responders"]
    assert done["completionTime"] == "2026-11-30T12:00:00Z"
