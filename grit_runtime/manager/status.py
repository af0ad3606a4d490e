"""The status of an object, which the manager alone writes."""

from __future__ import annotations

import datetime
from typing import cast

import kopf

from grit_runtime import log
from grit_runtime.errors import one_line, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.cluster import Cluster, Kind, Object

READY, FAILED = "Ready", "Failed"


class Status:
    """What an object's status says, and saying more.

    A phase that was entered is a condition that is True, as upstream has it. `Ready` is True or
    False when the object has come to its end, and says why.
    """

    def __init__(self, cluster: Cluster, kind: Kind, obj: Object) -> None:
        self._cluster = cluster
        self._kind = kind
        self._object = obj
        self.now: dict[str, Any] = dict(obj.get("status") or {})

    @property
    def phase(self) -> str:
        return str(self.now.get("phase", ""))

    async def note(self, **fields: object) -> None:
        """Write fields that say something new. What is empty is not there."""
        wanted = {name: None if value in ("", [], {}) else value for name, value in fields.items()}
        new = {name: value for name, value in wanted.items() if self.now.get(name) != value}
        if not new:
            return
        self.now |= new
        meta = self._object["metadata"]
        await self._cluster.patch(
            self._kind, meta["namespace"], meta["name"], {"status": new}, status=True
        )

    async def enter(self, phase: str, why: str, message: str = "", **fields: object) -> None:
        """Begin *phase*; what the one before it has taken is noted."""
        await self._write(phase, [(phase, "True", why, message)], why, message, fields)
        self._tell("Normal", why, message or f"now {phase}")

    async def succeed(self, phase: str, why: str, message: str = "", **fields: object) -> None:
        """Come to the good end *phase*."""
        conditions = [(phase, "True", why, message), (READY, "True", why, message)]
        ended = {"completionTime": _now().strftime("%Y-%m-%dT%H:%M:%SZ"), **fields}
        await self._write(phase, conditions, why, message, ended)
        self._tell("Normal", why, message or f"now {phase}")

    async def fail(self, error: Exception, **fields: object) -> None:
        """Come to a bad end, for this reason."""
        why, message = reason(error), one_line(error)
        meta = self._object["metadata"]
        log.warning(
            f"{self._object['kind']} has failed",
            name=f"{meta['namespace']}/{meta['name']}",
            reason=message,
        )
        conditions = [(FAILED, "True", why, message), (READY, "False", why, message)]
        ended = {"completionTime": _now().strftime("%Y-%m-%dT%H:%M:%SZ"), **fields}
        await self._write(FAILED, conditions, why, message, ended)
        self._tell("Warning", why, message)

    async def warn(self, why: str, message: str) -> None:
        """Say that something is not as it should be, and will be or may be mended."""
        if self.now.get("message") != message:
            self._tell("Warning", why, message)
            await self.note(message=message)

    def _tell(self, kind: str, why: str, message: str) -> None:
        """Post an event, which is what `kubectl describe` shows."""
        kopf.event(kopf.Body(cast("Any", self._object)), type=kind, reason=why, message=message)

    async def _write(
        self,
        phase: str,
        told: list[tuple[str, str, str, str]],
        why: str,
        message: str,
        fields: dict[str, object],
    ) -> None:
        moment = _now()
        durations = dict(self.now.get("durations") or {})
        since = self.now.get("phaseTime")
        if self.phase and since:
            durations[self.phase] = round(
                (moment - datetime.datetime.fromisoformat(since)).total_seconds(), 3
            )
        conditions = [dict(one) for one in self.now.get("conditions") or ()]
        for kind, state, one_reason, text in told:
            _set(conditions, kind, state, one_reason, text, moment)
        await self.note(
            phase=phase,
            reason=why,
            message=message,
            phaseTime=moment.isoformat(timespec="microseconds"),
            durations=durations,
            conditions=conditions,
            observedGeneration=self._object["metadata"].get("generation", 0),
            **fields,
        )


def _set(
    conditions: list[dict[str, Any]],
    kind: str,
    state: str,
    why: str,
    message: str,
    moment: datetime.datetime,
) -> None:
    there = next((one for one in conditions if one["type"] == kind), None)
    if there is None:
        there = {"type": kind}
        conditions.append(there)
    if there.get("status") != state:
        there["lastTransitionTime"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    there |= {"status": state, "reason": why, "message": message or kind}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
