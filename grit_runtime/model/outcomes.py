"""The outcomes of a pod's checkpoints and restores, and what they allow next. Pure.

A checkpoint is restored once per pod uid, container name and manifest digest. The outcome of a
pod's first containers binds the others: once a container was restored, none is started cold because
its own restore failed; once a container was started cold, none is restored.
"""

from __future__ import annotations

import json
from typing import Any

from grit_runtime.errors import FailedPreconditionError, NewerFormatError, printable
from grit_runtime.startup.named import NamedTuple

# So many records of a pod are kept, besides those that bind its next containers.
RECORDS_KEPT = 100

RESTORED = "restored"
SKIPPED = "skipped"
COLD = "cold"
FAILED = "failed"
SEALED = "sealed"
LOST = "lost"
HELD = "held"  # not in the records: a present state
WIDER = "wider"  # not in the records either
_RECORDED = {RESTORED, SKIPPED, COLD, FAILED, SEALED, LOST}

_KINDS: dict[str, type | tuple[type, ...]] = {  # others are texts
    "binds": bool,
    "timeline": (list, tuple),
    "warnings": (list, tuple),
}
_TOO_LARGE = 1e18  # neither seconds nor bytes; NaN and infinity are not below it either


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
    binds: bool = False  # started cold, so all containers of the pod have to be
    timeline: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()  # what came, or will come, back different
    error: str = ""  # the reason of docs/errors.md, where something failed

    def is_of(self, pod: str | None) -> bool:
        """Whether it is of *pod* (NAMESPACE/POD or its uid); without one it is."""
        return pod in (None, self.pod_uid, f"{self.namespace}/{self.pod}")


def parse(data: bytes) -> tuple[Outcome, ...]:
    """The records of one pod, from JSON.

    NewerFormatError for one of a newer version, FailedPreconditionError for what is no record.
    """
    try:
        records = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FailedPreconditionError(f"not JSON: {error}; remove the file") from None
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise FailedPreconditionError("not a list of records; remove the file")
    for record in records:
        _check(record)
    return tuple(map(from_json, records))


def from_json(record: dict[str, Any]) -> Outcome:
    """An outcome from JSON; fields that are newer than the record get their defaults.

    NewerFormatError for a record of a newer version with other fields.
    """
    _check_names(record)
    lists = {name: tuple(value) for name, value in record.items() if isinstance(value, list)}
    return Outcome(**(record | lists))


def _check_names(record: dict[str, Any]) -> None:
    for name in sorted(record.keys() - set(Outcome._fields)):
        raise NewerFormatError(
            f"a record has the field {name!r}, of a newer grit than this; upgrade grit on this node"
        )


def _check(record: dict[str, Any]) -> None:
    _check_names(record)
    whole = Outcome._field_defaults | record
    for name in Outcome._fields:
        if not isinstance(whole.get(name), _KINDS.get(name, str)):
            raise FailedPreconditionError(f"a record's {name} is {whole.get(name)!r:.60}")
    if not _is_time(whole["time"]):
        raise FailedPreconditionError(f"a record's time is {whole['time']!r:.60}")
    if whole["outcome"] not in _RECORDED:
        raise NewerFormatError(
            f"a record has the outcome {whole['outcome']!r}, of a newer grit than this; upgrade "
            "grit on this node"
        )
    for entry in whole["timeline"]:
        if not _is_phase(entry):
            raise FailedPreconditionError(f"a record's timeline has {entry!r:.200}")
    if not all(isinstance(warning, str) for warning in whole["warnings"]):
        raise FailedPreconditionError("a record's warnings are not texts")


def _is_time(text: str) -> bool:
    from datetime import datetime  # few pods have records when they start

    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%dT%H:%M:%SZ}" == text
    except ValueError:
        return False


def _is_phase(entry: object) -> bool:
    """Whether it has a name, and numbers that can be drawn; older ones have no beginning."""
    if not isinstance(entry, dict):
        return False
    rest = [entry.get(name) for name in ("begin_s", "epoch_s", "size_bytes")]
    numbers = [entry.get("seconds"), *(one for one in rest if one is not None)]
    texts = (entry.get("phase"), entry.get("container") or "")
    return all(isinstance(one, str) for one in texts) and all(
        isinstance(one, int | float) and abs(one) < _TOO_LARGE for one in numbers
    )


def whose(one: Outcome) -> dict[str, str]:
    """What lines of the log have that belong to it; the attempt is what `grit explain` takes."""
    pod = "/".join(filter(None, (one.namespace, one.pod)))
    named = {"pod": pod, "container": one.container, "attempt": one.container_id}
    return {key: value for key, value in named.items() if value}


def cold_reason(past: tuple[Outcome, ...], now: Outcome) -> str | None:
    """Why the container of *now* has to start cold after *past*; None if it may be restored.

    If there is no manifest to read, as when the checkpoint was removed after its restore,
    checkpoints are compared by their directories.
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
    """The newest outcomes, and all that bind the pod's containers; in their order."""
    newest = len(past) - RECORDS_KEPT
    return tuple(
        one
        for at, one in enumerate(past)
        if at >= newest or one.binds or one.outcome in (RESTORED, SKIPPED)
    )


def line(one: Outcome) -> str:
    """An outcome as a person reads it, on any terminal."""
    whose = "/".join(filter(None, (one.namespace, one.pod, one.container)))
    what = {
        RESTORED: f"restored from {one.checkpoint}",
        SKIPPED: "skipped: it had exited 0 before the checkpoint",
        COLD: f"started cold: {one.reason}",
        FAILED: f"{'restore' if one.container else 'checkpoint'} failed: {one.reason}",
        SEALED: f"checkpoint sealed: {one.checkpoint}",
        LOST: f"source lost: {one.reason}",
        HELD: f"held for {one.checkpoint}: {one.reason}",
        WIDER: f"was restored by an older version with {one.reason}; delete it, or checkpoint it "
        "and restore that",
    }
    error = f" ({one.error})" if one.error else ""
    lines = [f"{one.time} {whose} {what[one.outcome]}{error}"]
    lines += [f"  warning: {warning}" for warning in one.warnings]
    return "\n".join(map(printable, lines))


def _same_checkpoint(one: Outcome, other: Outcome) -> bool:
    if one.manifest_sha256 and other.manifest_sha256:
        return one.manifest_sha256 == other.manifest_sha256
    return one.checkpoint == other.checkpoint
