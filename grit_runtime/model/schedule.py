"""When the next of a series of checkpoints is taken, and which of them go. Pure."""

from __future__ import annotations

from typing import Literal

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Taken(NamedTuple):
    """One of a series of checkpoints."""

    name: str
    time: float  # when it was sealed, or has failed
    state: Literal["under way", "sealed", "failed"]
    is_in_use: bool = False  # a restore or a migration needs it
    keep: int | None = None  # it goes when the newest so many are newer; None: it stays


def next_time(
    after: Callable[[float], float], since: float, last: float | None, now: float
) -> float:
    """When the next one is due in a schedule that began at *since*, its *last* being so old.

    What was missed is made up for once, at once: a checkpoint of now is worth as much as several.
    *after* gives the time that follows another by the schedule.
    """
    begun = since if last is None else last
    return max(after(begun), now) if begun <= now else after(now)


def surplus(taken: Sequence[Taken]) -> list[str]:
    """Those of one series to remove, oldest first: each has as many newer ones as it says.

    Sealed ones are counted apart from failures: no number of failures pushes out the last state
    that a pod can be restored from, and what failed lately can be looked at.
    """
    found: list[Taken] = []
    for state in ("sealed", "failed"):
        newest_first = sorted(
            (one for one in taken if one.state == state), key=lambda one: one.time, reverse=True
        )
        found += [
            one
            for newer, one in enumerate(newest_first)
            if one.keep is not None and newer >= one.keep and not one.is_in_use
        ]
    return [one.name for one in sorted(found, key=lambda one: one.time)]
