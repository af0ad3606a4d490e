"""When the next of a series of checkpoints is taken, and which of them go. Pure."""

from __future__ import annotations

from typing import Literal

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Taken(NamedTuple):
    """One of a pod's checkpoints."""

    name: str
    time: float  # when it was asked for
    state: Literal["under way", "sealed", "failed"]
    is_in_use: bool = False  # a restore or a migration needs it


def next_time(interval_s: float, since: float, last: float | None, now: float) -> float:
    """When the next one is due in a schedule that began at *since*, its *last* being so old.

    What was missed is made up for once, at once: a checkpoint of now is worth as much as several.
    """
    begun = since if last is None else last
    return max(begun + interval_s, now) if begun <= now else now + interval_s


def surplus(taken: Sequence[Taken], keep: int) -> list[str]:
    """Those of one pod's checkpoints to remove so that the newest *keep* stay, oldest first.

    Sealed ones are counted apart from failures: no number of failures pushes out the last state
    that a pod can be restored from, and what failed lately can be looked at.
    """
    found: list[Taken] = []
    for state in ("sealed", "failed"):
        ordered = sorted((one for one in taken if one.state == state), key=lambda one: one.time)
        found += ordered[:-keep]
    return [one.name for one in sorted(found, key=lambda one: one.time) if not one.is_in_use]
