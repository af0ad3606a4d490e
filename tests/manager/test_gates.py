"""What makes a pod wait for its state, and what lets it go on."""

from __future__ import annotations

from typing import Any

from grit_runtime.manager import gates

OTHER = {"name": "acme.io/quota"}


def pod(**spec: Any) -> dict[str, Any]:
    meta = {"resourceVersion": "7", "labels": {"app": "trainer"}, "annotations": {"a": "b"}}
    return {"metadata": meta, "spec": spec}


def held(made: dict[str, Any]) -> dict[str, Any]:
    """The pod as it is then."""
    values = {step["path"]: step["value"] for step in gates.held(made, "node-a is lost")}
    meta = {
        **made["metadata"],
        "annotations": values["/metadata/annotations"],
        "labels": values["/metadata/labels"],
    }
    return {
        "metadata": meta,
        "spec": {**made["spec"], gates.FIELD: values["/spec/schedulingGates"]},
    }


def test_a_pod_that_waits_says_what_for_and_keeps_what_it_has() -> None:
    waiting = held(pod(schedulingGates=[OTHER]))
    assert waiting["spec"][gates.FIELD] == [OTHER, gates.GATE]
    assert waiting["metadata"]["annotations"] == {"a": "b", gates.WAITS: "node-a is lost"}
    assert waiting["metadata"]["labels"] == {"app": "trainer", gates.WAITS: "true"}
    assert gates.is_waiting(waiting)
    assert held(waiting)["spec"] == waiting["spec"]  # where the API server asks once more
    assert not gates.is_waiting(pod(schedulingGates=[OTHER]))
    gone = {**waiting, "metadata": {**waiting["metadata"], "deletionTimestamp": "now"}}
    assert not gates.is_waiting(gone)


def test_one_patch_opens_it_and_has_it_restored() -> None:
    waiting = held(pod(schedulingGates=[OTHER]))
    affinity = {"nodeAffinity": {"required": "node-b"}}
    patch = [
        {"op": "add", "path": "/metadata/annotations", "value": {"a": "b", "restore": "nightly"}},
        {"op": "add", "path": "/metadata/labels", "value": {"app": "trainer", "restore": "x"}},
        {"op": "add", "path": "/spec/affinity", "value": affinity},
    ]
    assert gates.opened(waiting, patch) == {
        "metadata": {
            "resourceVersion": "7",
            "annotations": {"a": "b", "restore": "nightly", gates.WAITS: None},
            "labels": {"app": "trainer", "restore": "x", gates.WAITS: None},
        },
        "spec": {gates.FIELD: [OTHER], "affinity": affinity},
    }


def test_one_that_waits_for_nothing_any_more_is_only_opened() -> None:
    told = gates.opened(held(pod()), ())
    assert told["spec"] == {gates.FIELD: []}
    assert told["metadata"]["annotations"] == {gates.WAITS: None}
