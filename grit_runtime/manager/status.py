"""The status of an object, which the manager alone writes."""

from __future__ import annotations

import datetime
from typing import cast

import kopf

from grit_runtime import log
from grit_runtime.errors import ConflictError, one_line, reason
from grit_runtime.manager import api, conditions, fields
from grit_runtime.manager.api import Condition
from grit_runtime.manager.conditions import Moment
from grit_runtime.model import durations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.cluster import Cluster, Kind, Object

_REASONS = {
    "Checkpoint": conditions.CHECKPOINT_REASONS,
    "Restore": conditions.RESTORE_REASONS,
    "Migration": conditions.MIGRATION_REASONS,
}
_EMPTY: tuple[object, ...] = ("", [], {})  # what is not there


class Status:
    """What an object's status says, and saying more."""

    def __init__(self, cluster: Cluster, kind: Kind, obj: Object) -> None:
        self._cluster = cluster
        self._kind = kind
        self._object = obj
        self.now: dict[str, Any] = dict(obj.get("status") or {})
        self._version = str(obj["metadata"].get("resourceVersion", ""))
        self._written_phase = self.phase
        self._unwritten: Object = {}
        self._sent = ""  # the phaseTime of what was written last

    @property
    def phase(self) -> str:
        return str(self.now.get("phase", ""))

    @property
    def name(self) -> str:
        meta = self._object["metadata"]
        return f"{meta['namespace']}/{meta['name']}"

    async def note(self, **told: object) -> None:
        """Write fields that say something new. What is empty is not there."""
        wanted = {name: None if value in _EMPTY else value for name, value in told.items()}
        new = {name: value for name, value in wanted.items() if self.now.get(name) != value}
        if new:
            await self._put(new)

    async def label(self, **labels: str) -> None:
        """Give the object labels, by which others find it."""
        meta = self._object["metadata"]
        patch = {"metadata": {"labels": labels}}
        self._require(await self._cluster.patch(self._kind, meta["namespace"], meta["name"], patch))

    async def confirm(self) -> None:
        """ConflictError unless the object is as far as is known here.

        Another manager may lead by now, and have gone on with it.
        """
        meta = self._object["metadata"]
        self._require(await self._cluster.get(self._kind, meta["namespace"], meta["name"]))

    def _require(self, now: Object) -> None:
        meta, there = self._object["metadata"], now.get("status") or {}
        phase, expected = there.get("phase", ""), self._written_phase
        is_own = phase == expected or there.get("phaseTime") == self._sent  # whose answer was lost
        if now["metadata"]["uid"] != meta["uid"] or not is_own:
            raise ConflictError(
                f"{self._object['kind']} {meta['namespace']}/{meta['name']} is {phase or 'another'}"
                f", expected {expected or 'a new one'}: somebody else has gone on with it"
            )
        self._version = str(now["metadata"]["resourceVersion"])

    async def warn(self, why: str, message: str) -> None:
        """Say that something is not as it should be, and will be or may be mended."""
        if self.now.get("message") != message:
            self._tell("Warning", why, message)
            await self.note(message=message)

    async def enter(self, phase: str, message: str = "", **told: object) -> None:
        """Begin *phase*; what the one before it has taken is noted."""
        why = _REASONS[self._object["kind"]][phase]
        is_first = not self.phase
        if is_first:
            told["startTime"] = _seconds(_now())
        await self._put(self._changed(phase, why, message, told))
        if not is_first:  # that it is there tells nothing
            self._tell("Normal", why, f"is {phase}")

    def pass_through(self, phase: str, **told: object) -> None:
        """Begin a *phase* that takes no longer than to write it: what is written next says it."""
        if not self.phase:
            told["startTime"] = _seconds(_now())
        changed = self._changed(phase, _REASONS[self._object["kind"]][phase], "", told)
        self._unwritten |= changed
        self.now |= changed

    async def finish(self, phase: str, **told: object) -> None:
        """Come to the good end *phase*."""
        await self.enter(phase, "", **(self._ended() | told))

    async def fail(self, error: Exception) -> None:
        """Come to a bad end, for this reason."""
        why, message = reason(error), one_line(error)
        log.warning(f"{self._object['kind']} has failed", name=self.name, reason=message)
        await self._put(self._changed(api.FAILED, why, message, self._ended()))
        self._tell("Warning", why, message)

    async def settle(self, why: str, message: str, *, is_ready: bool) -> None:
        """Say of an object without phases that it is ready, or why it is not."""
        moment = Moment(_seconds(_now()), self._object["metadata"].get("generation", 0))
        # A condition's message may be empty, but not with every API server.
        found = conditions.ready(
            self._conditions(), why, message or "is ready", moment, is_true=is_ready
        )
        if message and message != self.now.get("message"):
            self._tell("Warning", why, message)
        await self.note(
            reason="" if is_ready else why,
            message=message,
            conditions=fields.plain(found),
            observedGeneration=moment.generation,
        )

    def _conditions(self) -> tuple[Condition, ...]:
        known: tuple[Condition, ...] = fields.read(
            tuple[Condition, ...], self.now.get("conditions") or [], "conditions"
        )
        return known

    def _ended(self) -> dict[str, object]:
        now = _now()
        begun = datetime.datetime.fromisoformat(self.now.get("startTime") or _seconds(now))
        took_s = max(0.0, (now - begun).total_seconds())
        return {"completionTime": _seconds(now), "duration": durations.shown(took_s)}

    def _tell(self, kind: str, why: str, message: str) -> None:
        """Post an event, which is what `kubectl describe` shows."""
        kopf.event(kopf.Body(cast("Any", self._object)), type=kind, reason=why, message=message)

    async def _put(self, new: Object) -> None:
        """Write what is *new*, and what was not worth a request of its own before."""
        new = self._unwritten | new
        self._sent = new.get("phaseTime", self._sent)
        while True:
            try:
                version = {"resourceVersion": self._version}
                written = await self._patch({"metadata": version, "status": new})
            except ConflictError:  # it was annotated meanwhile, or somebody has gone on with it
                await self.confirm()
            else:
                self.now |= new
                self._written_phase, self._unwritten = self.phase, {}
                self._require(written)
                return

    def _changed(self, phase: str, why: str, message: str, told: dict[str, object]) -> Object:
        """What is new in the status with *phase*."""
        now = _now()
        seconds = dict(self.now.get("durations") or {})
        since = self.now.get("phaseTime")
        if self.phase and since:
            took = now - datetime.datetime.fromisoformat(since)
            seconds[self.phase] = round(took.total_seconds(), 3)
        generation = self._object["metadata"].get("generation", 0)
        # A condition's message may be empty, but not with every API server.
        text = message or f"is {phase}"
        reached = conditions.reached(
            self._conditions(), phase, why, text, Moment(_seconds(now), generation)
        )
        return {
            "phase": phase,
            "reason": why,
            "message": message or None,
            "phaseTime": now.isoformat(timespec="microseconds"),
            "durations": seconds,
            "conditions": fields.plain(reached),
            "observedGeneration": generation,
            **{name: None if value in _EMPTY else value for name, value in told.items()},
        }

    async def _patch(self, patch: Object) -> Object:
        meta = self._object["metadata"]
        return await self._cluster.patch(
            self._kind, meta["namespace"], meta["name"], patch, status=True
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _seconds(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
