"""What became of a pod's checkpoints and restores, and what that allows next. Pure.

A checkpoint is restored once per pod uid, container name and manifest digest. What the first
containers of a pod became binds the others: beside one that was restored none is started cold
because its own restore failed, and after one that was started cold none is restored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# A pod keeps so many records, and those that decide what its next containers become.
RECORDS_KEPT = 100

RESTORED = "restored"
SKIPPED = "skipped"
COLD = "cold"
FAILED = "failed"
SEALED = "sealed"
LOST = "lost"


class Outcome(NamedTuple):
    """How one checkpoint of a pod, or one restore of a container, ended."""

    time: str  # RFC 3339, UTC
    outcome: str
    reason: str  # empty where all went well
    namespace: str
    pod: str
    pod_uid: str
    sandbox_id: str
    container: str  # empty for a checkpoint, which is of the pod
    container_id: str
    checkpoint: str  # its directory
    manifest_sha256: str = ""  # empty while no manifest could be read
    binds: bool = False  # cold, and so all containers of the pod are
    timeline: tuple[dict[str, Any], ...] = ()


def cold_reason(past: tuple[Outcome, ...], now: Outcome) -> str | None:
    """Why the container of *now* starts cold, by what became of its pod before; None if it may be
    restored.

    Without a manifest to read, as when the checkpoint was removed after its restore, its directory
    says which checkpoint is meant.
    """
    for one in past:
        if one.binds:
            return f"container {one.container} of the pod was started cold at {one.time}"
        if one.outcome != RESTORED or not _same_checkpoint(one, now):
            continue
        if one.container == now.container:
            return (
                f"it was restored from this checkpoint before, at {one.time}; "
                "a checkpoint is restored once"
            )
        if one.sandbox_id != now.sandbox_id:
            return (
                f"container {one.container} of the pod was restored from this checkpoint at "
                f"{one.time}, in a sandbox that is gone; a checkpoint is restored once"
            )
    return None


def restored_container(past: tuple[Outcome, ...], sandbox_id: str) -> str | None:
    """A container of this sandbox that forbids a cold start: restored, or its work skipped."""
    return next(
        (
            one.container
            for one in past
            if one.outcome in (RESTORED, SKIPPED) and one.sandbox_id == sandbox_id
        ),
        None,
    )


def bounded(past: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
    """The newest outcomes, and all those that decide; in the order that they had."""
    newest = len(past) - RECORDS_KEPT
    return tuple(
        one
        for at, one in enumerate(past)
        if at >= newest or one.binds or one.outcome in (RESTORED, SKIPPED)
    )


def line(one: Outcome) -> str:
    """An outcome as a person reads it."""
    whose = "/".join(filter(None, (one.namespace, one.pod, one.container)))
    what = {
        RESTORED: f"restored from {one.checkpoint}",
        SKIPPED: "skipped: it had exited 0 before the checkpoint",
        COLD: f"started cold: {one.reason}",
        FAILED: f"{'restore' if one.container else 'checkpoint'} failed: {one.reason}",
        SEALED: f"checkpoint sealed: {one.checkpoint}",
        LOST: f"source lost: {one.reason}",
    }
    return f"{one.time} {whose} {what[one.outcome]}"


def _same_checkpoint(one: Outcome, other: Outcome) -> bool:
    if one.manifest_sha256 and other.manifest_sha256:
        return one.manifest_sha256 == other.manifest_sha256
    return one.checkpoint == other.checkpoint
