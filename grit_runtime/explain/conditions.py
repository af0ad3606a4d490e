"""The story of an object of the cluster, by its conditions. Pure."""

from __future__ import annotations

import calendar
import time
from itertools import pairwise
from typing import Any

from grit_runtime.explain.story import Act, Phase, Story
from grit_runtime.model import outcomes

_NO_PHASES = {"Ready", "Failed"}


def story(obj: dict[str, Any]) -> Story:
    """Each phase lasts until the next is reached; conditions have whole seconds."""
    meta, status = obj["metadata"], obj.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    failed = conditions.get("Failed") or {}
    is_failed = failed.get("status") == "True"
    facts = tuple((key, value) for key, value in status.items() if isinstance(value, str))
    act = Act(
        time=max((one["lastTransitionTime"] for one in conditions.values()), default=""),
        title=str(status.get("phase") or "nothing yet"),
        outcome=outcomes.FAILED if is_failed else outcomes.SEALED,
        phases=_phases(list(conditions.values())),
        reason=str(failed.get("message") or "") if is_failed else "",
        error=str(failed.get("reason") or "") if is_failed else "",
        evidence=(),
        warnings=(),
    )
    title = f"{obj['kind'].lower()} {meta['namespace']}/{meta['name']}"
    return Story(title, facts, (act,), ())


def _phases(conditions: list[dict[str, Any]]) -> tuple[Phase, ...]:
    reached = sorted(
        (_seconds(one["lastTransitionTime"]), str(one["type"]))
        for one in conditions
        if one["type"] not in _NO_PHASES
    )
    if not reached:
        return ()
    end = max(_seconds(one["lastTransitionTime"]) for one in conditions)
    first = reached[0][0]
    return tuple(
        Phase(name, begin - first, after - begin, None, failed=False)
        for (begin, name), (after, _) in pairwise([*reached, (end, "")])
    )


def _seconds(stamp: str) -> int:
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
