"""What the simulation goes by: what was measured, and where; and what is only assumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parents[2]
NOTICE_S = 120.0  # AWS's
CARDS = 8  # of a node
GIB_A_CARD = ((8, 0.3), (16, 0.25), (32, 0.25), (64, 0.2))  # of memory, and how many cards have it
CARDS_A_POD = ((1, 0.5), (2, 0.25), (4, 0.15), (8, 0.1))
LOAD = 0.8  # of all cards
URGENT = 0.2  # of the pods have a higher priority
SERVING = 0.6  # of the pods; the others train
CHANGED_SERVING, CHANGED_TRAINING = 0.1, 1.0  # of the chunks, since the last push of a schedule


class Line(NamedTuple):
    """Seconds that grow with the size."""

    base_s: float
    s_per_gib: float

    def seconds(self, gib: float) -> float:
        return self.base_s + self.s_per_gib * gib


class Measured(NamedTuple):
    """Of a node and of the manager; SOURCES says where each figure is from."""

    seal: Line  # of one card's memory, held frozen
    restore: Line  # from the memory's arrival to the pod that runs
    seal_a_doubling: float  # times as long with twice the cards
    restore_a_doubling: float
    link_gib_per_s: float  # between agents, in one direction
    store_gib_per_s: float  # of one node, to or from a store
    hash_gib_per_s: float  # what is in the store already is read and hashed
    control_s: float  # what of a migration is the control plane's, one half of it before the seal
    manager_s: float  # of the manager's processor, in that


_MOVES = "`integration/gpu/results.json`, 8 and 32 GiB to another node"
_BENCHMARKS = "[benchmarks](benchmarks.md)"
SOURCES = (
    ("seal", "checkpoint, held frozen: until it is sealed", _MOVES),
    ("restore", "from the memory's arrival to the pod that runs", _MOVES),
    ("seal_a_doubling", "the checkpoint with twice the cards", f"{_BENCHMARKS}: two cards"),
    ("restore_a_doubling", "the restore with twice the cards", f"{_BENCHMARKS}: two cards"),
    ("link_gib_per_s", "between agents, GiB/s a node and direction", f"{_MOVES}: 32 GiB"),
    ("store_gib_per_s", "of a node to or from a store, GiB/s", f"{_BENCHMARKS}: `store.push`"),
    ("hash_gib_per_s", "what is in the store already, GiB/s", f"{_BENCHMARKS}: `wrapper.digest`"),
    (
        "control_s",
        "of a migration, the control plane's, s",
        f"{_BENCHMARKS}: `kubernetes.migration`",
    ),
    ("manager_s", "the manager's processor in it, s", f"{_BENCHMARKS}: `kubernetes.processor`"),
)


def assumed() -> tuple[tuple[str, str], ...]:
    """What nobody has measured, in words."""
    return (
        ("notice", f"{NOTICE_S:.0f} s, as AWS gives it; all nodes are told at once"),
        ("node", f"{CARDS} cards"),
        ("load", f"{LOAD:.0%} of the pods that would fill the nodes are there"),
        ("cards of a pod", _shares(CARDS_A_POD)),
        ("memory of a card, GiB", _shares(GIB_A_CARD)),
        ("priority", f"{URGENT:.0%} of the pods have a higher one"),
        ("pods that serve", f"{SERVING:.0%}; the others train"),
        ("changed chunks", f"{CHANGED_SERVING:.0%} of one that serves, or {CHANGED_TRAINING:.0%}"),
    )


def _shares(choices: tuple[tuple[int, float], ...]) -> str:
    return ", ".join(f"{value}: {share:.0%}" for value, share in choices)


def shown(value: Line | float) -> str:
    """A figure as the documents have it."""
    if isinstance(value, Line):
        return f"{value.base_s:.2f} s + {value.s_per_gib:.2f} s/GiB"
    return f"{value:.2f}"


def measured() -> Measured:
    """The figures of docs/benchmarks.md and integration/gpu/results.json."""
    small, large = (_moved(gib) for gib in (8, 32))
    return Measured(
        seal=_line(small["checkpoint sealed"], large["checkpoint sealed"]),
        restore=_line(_after_arrival(small), _after_arrival(large)),
        seal_a_doubling=1.1,
        restore_a_doubling=1.5,
        link_gib_per_s=32 / (large["start"] - _after_arrival(large)),
        store_gib_per_s=4 / _row("store.push"),
        hash_gib_per_s=2 / _row("wrapper.digest"),
        control_s=_row("kubernetes.migration"),
        manager_s=_row("kubernetes.processor"),
    )


def _moved(gib: int) -> dict[str, float]:
    """The phases of the newest move of so much by the agents."""
    rows = json.loads((REPO / "integration/gpu/results.json").read_text())
    case = f"{gib} GiB to another node"
    found: dict[str, float] = [
        row["seconds"] for row in rows if (row["case"], row["way"]) == (case, "grit")
    ][-1]
    return found


def _after_arrival(phases: dict[str, float]) -> float:
    """What is still to be done when the memory is there; what is done before takes no longer."""
    last = ("memory", "gpu restore", "gpu unlock")
    besides = phases["start"] - phases["restore all"]
    return besides + sum(phases[f"restore {phase}"] for phase in last)


def _line(at_8: float, at_32: float) -> Line:
    slope = (at_32 - at_8) / 24
    return Line(at_8 - 8 * slope, slope)


def _row(name: str) -> float:
    """Our seconds in the row of docs/benchmarks.md."""
    text = (REPO / "docs/benchmarks.md").read_text()
    row = rf"^\| `{re.escape(name)}`[^|]*\| ([\d.]+) (s|ms) \|"
    found = re.search(row, text, flags=re.MULTILINE)
    assert found, name
    return float(found[1]) * (0.001 if found[2] == "ms" else 1.0)
