"""Conditions of the objects. Pure.

Their types are the phases, as upstream has them, and Ready: `kubectl wait` is for either. A phase
that was reached stays True. Failed becomes False when it goes on after all.
"""

from __future__ import annotations

from grit_runtime.manager import api
from grit_runtime.manager.api import Condition
from grit_runtime.startup.named import NamedTuple

# The reasons of reaching a phase, upstream's where it has the phase (checkpoint_controller.go and
# restore_controller.go@8bf3b54). That of a failure is its error's.
CHECKPOINT_REASONS = {
    api.CREATED: "CheckpointIsCreated",
    api.PENDING: "InitializingCompleted",
    api.CHECKPOINTING: "GritAgentIsCreated",
    api.CHECKPOINTED: "GritAgentJobCompleted",
    api.SUBMITTING: "CheckpointedCompleted",
    api.SUBMITTED: "SubmittingCompleted",
}
RESTORE_REASONS = {
    api.CREATED: "RestoreIsCreated",
    api.PENDING: "RestorationPodSelected",
    api.RESTORING: "GritAgentIsCreated",
    api.RESTORED: "RestorationPodRunning",
}
MIGRATION_REASONS = {
    api.PENDING: "MigrationIsCreated",
    api.CHECKPOINTING: "SourcePodFound",
    api.PLACING: "CheckpointSealed",
    api.RESTORING: "TargetPodPlaced",
    api.VERIFIED: "TargetPodRestored",
    api.SUCCEEDED: "SourcePodDeleted",
    api.ROLLING_BACK: "TargetPodFailed",
}
_READY = {api.CHECKPOINTED, api.SUBMITTING, api.SUBMITTED, api.RESTORED, api.SUCCEEDED}


class Moment(NamedTuple):
    """When, and of which generation of the object."""

    time: str  # RFC 3339, UTC
    generation: int


def reached(
    conditions: tuple[Condition, ...], phase: str, reason: str, message: str, moment: Moment
) -> tuple[Condition, ...]:
    """*conditions* of an object that is in *phase* now."""
    is_ready = phase in _READY
    found = _with(conditions, _condition(phase, reason, message, moment, is_true=True))
    if phase != api.FAILED and any(known.type == api.FAILED for known in conditions):
        found = _with(found, _condition(api.FAILED, reason, message, moment, is_true=False))
    return _with(found, _condition(api.READY, reason, message, moment, is_true=is_ready))


def ready(
    conditions: tuple[Condition, ...], reason: str, message: str, moment: Moment, *, is_true: bool
) -> tuple[Condition, ...]:
    """*conditions* of an object without phases, which is ready or not."""
    return _with(conditions, _condition(api.READY, reason, message, moment, is_true=is_true))


def _condition(kind: str, reason: str, message: str, moment: Moment, *, is_true: bool) -> Condition:
    return Condition(
        type=kind,
        status="True" if is_true else "False",
        last_transition_time=moment.time,
        reason=reason,
        message=message,
        observed_generation=moment.generation,
    )


def _with(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """*conditions* with *new* in the place of the one of its type."""
    for at, old in enumerate(conditions):
        if old.type == new.type:
            if old.status == new.status:
                new = new._replace(last_transition_time=old.last_transition_time)
            return (*conditions[:at], new, *conditions[at + 1 :])
    return (*conditions, new)
