"""What the simulation answers, as the tables and the plot of docs/fleet.md."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import NamedTuple

from integration.fleet import drawing, inputs, simulation
from integration.fleet.simulation import STAGES, VERIFIED, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from integration.fleet.drawing import Pod
    from integration.fleet.inputs import Measured
    from integration.fleet.simulation import Outcome

FILER_GIB_PER_S, BUCKET_GIB_PER_S = 12.0, 120.0
NODES = 1000
WAYS = {
    "node to node": Setting(),
    "store of 12 GiB/s": Setting(FILER_GIB_PER_S),
    "store of 12 GiB/s, deltas": Setting(FILER_GIB_PER_S, has_deltas=True),
    "store of 120 GiB/s": Setting(BUCKET_GIB_PER_S),
    "store of 120 GiB/s, deltas": Setting(BUCKET_GIB_PER_S, has_deltas=True),
}
FLEETS = {  # how many nodes are told, and how many empty ones there are besides
    "10": (10, 0),
    "50": (50, 0),
    "200": (200, 0),
    "500": (500, 0),
    "1000, no other": (1000, 0),
    "1000, as many empty": (1000, 1000),
}
PLOTTED = (10, 20, 50, 100, 200, 350, 500, 700, 1000)

_NO_LIMIT = 1e9
_NOTHING = inputs.Line(0.0, 0.0)
_AT_ONCE = (1, 2, 4, 8)


class Case(NamedTuple):
    """What is simulated."""

    measured: Measured
    setting: Setting
    empty: int


def _on_paper(case: Case, **measured: Any) -> Case:
    return case._replace(measured=case.measured._replace(**measured))


def _set(case: Case, **setting: Any) -> Case:
    return case._replace(setting=case.setting._replace(**setting))


# What a limit is taken away by.
LIMITS: dict[str, Callable[[Case], Case]] = {
    "as it is": lambda case: case,
    "dump": lambda case: _on_paper(case, seal=_NOTHING),
    "restore": lambda case: _on_paper(case, restore=_NOTHING),
    "links of nodes": lambda case: _on_paper(
        case, link_gib_per_s=_NO_LIMIT, store_gib_per_s=_NO_LIMIT, hash_gib_per_s=_NO_LIMIT
    ),
    "store": lambda case: _set(case, store_gib_per_s=_NO_LIMIT),
    "manager": lambda case: _set(_on_paper(case, manager_s=0.0), objects=math.inf),
    "turns of a node": lambda case: _set(case, at_once=math.inf),
    "jobs of an agent": lambda case: _set(case, jobs=math.inf),
    "room": lambda case: case._replace(empty=case.empty + NODES),
}


@cache
def _fleet(told: int, empty: int) -> drawing.Fleet:
    return drawing.drawn(NODES, told, empty)


@cache
def _run(told: int, empty: int, setting: Setting) -> list[Outcome]:
    return simulation.run(_fleet(told, empty), inputs.measured(), setting)


def arrivals() -> str:
    """How many pods of how many nodes arrive, by which way; and where the others are left."""
    rows = []
    for words, (told, empty) in FLEETS.items():
        for way, setting in WAYS.items():
            outcomes = _run(told, empty, setting)
            left = Counter(one.stage for one in outcomes if one.stage != VERIFIED)
            stages = [f"{stage} {left[stage]}" for stage in STAGES if left[stage]]
            kept = sum(one.is_kept for one in outcomes) if setting.store_gib_per_s else ""
            rows.append([words, len(outcomes), way, _verified(outcomes), kept, ", ".join(stages)])
    return _table(["nodes told", "pods", "way", "verified", "in the store", "left at"], rows)


def limits() -> str:
    """How many pods arrive if one of the limits were not there."""
    rows: list[list[object]] = []
    for words in ("50", "200", "1000, as many empty"):
        told, empty = FLEETS[words]
        for way in ("node to node", "store of 12 GiB/s, deltas", "store of 120 GiB/s, deltas"):
            case = Case(inputs.measured(), WAYS[way], empty)
            found: list[object] = []
            for limit, lifted in LIMITS.items():
                now = lifted(case)
                outcomes = simulation.run(_fleet(told, now.empty), now.measured, now.setting)
                has_limit = limit != "store" or case.setting.store_gib_per_s
                found.append(_verified(outcomes) if has_limit else "")
            rows.append([words, way, *found])
    return _table(["nodes told", "way", *LIMITS], rows)


def turns() -> str:
    """What it means how many pods of a node move at once, node to node, of 100 nodes."""
    rows = []
    for at_once in _AT_ONCE:
        outcomes = _run(100, 0, Setting(at_once=at_once))
        verified = [one for one in outcomes if one.stage == VERIFIED]
        first = sorted(one.verified_s for one in verified)[len(verified) // 2]
        gib = sum(one.pod.gib for one in verified)
        rows.append([at_once, len(verified), f"{gib:.0f}", f"{first:.0f} s", *_by_value(outcomes)])
    heads = ["at once", "verified", "GiB", "half of them by", *_VALUES]
    return _table(heads, rows)


def _is_urgent(pod: Pod) -> bool:
    return bool(pod.body["spec"]["priority"])


_VALUES: dict[str, Callable[[Pod], bool]] = {
    "of higher priority": _is_urgent,
    "others with 4 or 8 cards": lambda pod: not _is_urgent(pod) and pod.cards >= 4,
    "others with 1 or 2": lambda pod: not _is_urgent(pod) and pod.cards < 4,
}


def _by_value(outcomes: Sequence[Outcome]) -> list[str]:
    """Which part of those arrives that the order has first, and of the others."""
    parts = []
    for is_meant in _VALUES.values():
        meant = [one for one in outcomes if is_meant(one.pod)]
        parts.append(f"{_verified(meant) / len(meant):.0%}".replace("%", " %"))
    return parts


def order() -> str:
    """Which pods arrive, by what the order looks at."""
    rows = []
    for words in ("50", "200", "1000, as many empty"):
        outcomes = _run(*FLEETS[words], Setting())
        rows.append([words, *_by_value(outcomes)])
    return _table(["nodes told", *_VALUES], rows)


def figures() -> str:
    """What was measured, and where."""
    now = inputs.measured()
    rows = [
        [what, inputs.shown(getattr(now, name)), source] for name, what, source in inputs.SOURCES
    ]
    return _table(["input", "value", "from"], rows)


def assumptions() -> str:
    """What nobody has measured."""
    return _table(["assumed", "as"], inputs.assumed()).replace("%", " %")


TABLES = (figures, assumptions, arrivals, limits, order, turns)


def shares() -> dict[str, list[tuple[int, float]]]:
    """Of each way: which part of the pods arrives, by how many of all nodes are told."""
    return {
        way: [(told, _share(_run(told, 0, setting))) for told in PLOTTED]
        for way, setting in WAYS.items()
    }


def _share(outcomes: Sequence[Outcome]) -> float:
    return _verified(outcomes) / len(outcomes)


def _verified(outcomes: Iterable[Outcome]) -> int:
    return sum(one.stage == VERIFIED for one in outcomes)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
