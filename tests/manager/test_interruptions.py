"""Which deletions are preemptions, and which changes of a Job suspend it."""

from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import interruptions

UNTOLD: dict[str, Any] = {}
SUSPENDED, RUNNING = {"suspend": True}, {"suspend": False}


def deletion(user: str, **spec: str) -> dict[str, Any]:
    return {"userInfo": {"username": user}, "oldObject": {"spec": spec}, "object": None}


def test_what_the_scheduler_deletes_is_preempted() -> None:
    assert interruptions.is_preemption(deletion("system:kube-scheduler", runtimeClassName="grit"))


@pytest.mark.parametrize(
    "request_",
    [
        deletion("system:kube-scheduler"),
        deletion("system:kube-scheduler", runtimeClassName="other"),
        deletion("system:serviceaccount:kube-system:job-controller", runtimeClassName="grit"),
        deletion("somebody", runtimeClassName="grit"),
    ],
)
def test_any_other_deletion_is_none_of_ours(request_: dict[str, Any]) -> None:
    assert not interruptions.is_preemption(request_)


@pytest.mark.parametrize("before", [RUNNING, UNTOLD])
def test_a_job_is_suspended_when_it_is_told(before: dict[str, Any]) -> None:
    change = {"oldObject": {"spec": before}, "object": {"spec": SUSPENDED}}
    assert interruptions.is_suspension(change)


@pytest.mark.parametrize(
    ("before", "after"),
    [(SUSPENDED, SUSPENDED), (SUSPENDED, RUNNING), (SUSPENDED, UNTOLD), (RUNNING, UNTOLD)],
)
def test_any_other_change_of_a_job_goes_on(before: dict[str, Any], after: dict[str, Any]) -> None:
    change = {"oldObject": {"spec": before}, "object": {"spec": after}}
    assert not interruptions.is_suspension(change)
