"""Pods and what owns them."""

from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import pods

HASH, UID = "pod-template-hash", "controller-uid"


def owned(kind: str, **labels: str) -> dict[str, Any]:
    reference = {"kind": kind, "uid": "owner", "controller": True}
    meta = {"uid": "pod", "labels": {"app": "trainer", **labels}, "ownerReferences": [reference]}
    return {"metadata": meta}


def patched(pod: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """As the API server merges it."""
    meta = dict(pod["metadata"])
    for name in ("labels", "annotations"):
        merged = meta.get(name, {}) | patch["metadata"][name]
        meta[name] = {key: value for key, value in merged.items() if value is not None}
    return {"metadata": meta}


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("ReplicaSet", {HASH: "7c99f8f7d9"}),
        ("Job", {UID: "owner"}),
        ("Job", {UID: "owner", f"batch.kubernetes.io/{UID}": "owner"}),
        ("Job", {f"batch.kubernetes.io/{UID}": "owner"}),
    ],
    ids=["a Deployment's", "a Job's before 1.27", "a Job's", "one without the older label"],
)
def test_a_detached_pod_has_none_of_its_owners_labels_until_it_is_given_back(
    kind: str, labels: dict[str, str]
) -> None:
    pod = owned(kind, **labels)
    assert pods.can_detach(pod)
    detached = patched(pod, pods.detaching(pod))
    assert detached["metadata"]["labels"] == {"app": "trainer"}
    assert not pods.can_detach(detached)
    back = pods.attaching(detached)
    assert back is not None
    assert patched(detached, back)["metadata"]["labels"] == pod["metadata"]["labels"]
    assert pods.attaching(patched(detached, back)) is None


@pytest.mark.parametrize(
    "pod",
    [owned("StatefulSet"), owned("ReplicaSet"), owned("Job"), {"metadata": {"uid": "pod"}}],
    ids=["StatefulSet", "ReplicaSet without a Deployment", "Job of its own selector", "no owner"],
)
def test_a_pod_that_its_owner_knows_otherwise_cannot_be_detached(pod: dict[str, Any]) -> None:
    assert not pods.can_detach(pod)
