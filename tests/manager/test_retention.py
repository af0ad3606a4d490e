from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import api, retention


def checkpoint(pod: str, schedule: str = "", owner: str = "", **status: Any) -> api.Checkpoint:
    kind, _, uid = owner.rpartition("/")
    references = [{"kind": kind or "ReplicaSet", "uid": uid, "controller": True}] if owner else []
    annotations = {"batch.kubernetes.io/job-completion-index": status.pop("index", "")}
    meta = {"ownerReferences": references, "annotations": annotations}
    template = {"metadata": meta, "spec": {}}
    return api.Checkpoint(
        api.Metadata(labels={retention.SCHEDULE: schedule} if schedule else {}),
        api.CheckpointSpec(pod_name=pod, auto_migration=status.pop("moves", False)),
        api.CheckpointStatus(pod_name=pod, pod_uid=f"uid-{pod}", pod_template=template, **status),
    )


def test_pods_of_one_owner_that_are_there_are_counted_each_for_itself() -> None:
    pods = [checkpoint("a", owner="rs"), checkpoint("b", owner="rs")]
    assert len({retention.series(one, {"uid-a", "uid-b"}) for one in pods}) == 2


def test_pods_of_one_owner_that_are_gone_are_counted_together() -> None:
    pods = [checkpoint("a", owner="rs"), checkpoint("b", owner="rs"), checkpoint("c", owner="rs")]
    assert len({retention.series(one, {"uid-c"}) for one in pods}) == 2


def test_pods_of_a_statefulset_that_are_gone_are_counted_each_by_its_name() -> None:
    gone = [checkpoint(name, owner="StatefulSet/set") for name in ("set-0", "set-1", "set-1")]
    assert len({retention.series(one, set()) for one in gone}) == 2


def test_pods_of_an_indexed_job_that_are_gone_are_counted_each_by_its_index() -> None:
    gone = [checkpoint(f"job-{i}-{end}", owner="Job/job", index=i) for i in "01" for end in "xy"]
    assert len({retention.series(one, set()) for one in gone}) == 2


def test_a_bare_pod_that_is_made_anew_is_counted_by_its_name() -> None:
    assert retention.series(checkpoint("a"), set()) == ("", "a")


def test_schedules_do_not_push_out_each_other_s_nor_what_was_taken_by_hand() -> None:
    taken = [checkpoint("a"), checkpoint("a", "nightly"), checkpoint("a", "hourly")]
    assert len({retention.series(one, {"uid-a"}) for one in taken}) == 3


def test_of_two_that_were_made_in_one_second_the_one_that_was_sealed_later_is_newer() -> None:
    made, sealed = "2026-11-30T13:00:56Z", "2026-11-30T13:00:5{}+00:00"
    first, second = (
        checkpoint("a", phase_time=sealed.format(end))._replace(
            metadata=api.Metadata(creation_timestamp=made)
        )
        for end in ("6.613000", "7.472000")
    )
    assert retention.since(first) < retention.since(second)
    assert retention.since(first._replace(status=api.CheckpointStatus())) < retention.since(first)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "under way"),
        ({"phase": "Checkpointing"}, "under way"),
        ({"phase": "Checkpointed"}, "sealed"),
        ({"phase": "Checkpointed", "moves": True}, "under way"),
        ({"phase": "Submitted", "moves": True}, "sealed"),
        ({"phase": "Failed"}, "failed"),
        ({"phase": "Failed", "moves": True, "manifest_digest": "sha256:1"}, "sealed"),
    ],
)
def test_what_a_state_can_be_restored_from_is_sealed(status: Any, state: str) -> None:
    assert retention.state(checkpoint("a", **status)) == state
