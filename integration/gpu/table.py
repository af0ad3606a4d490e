"""A table of results for people: the median of each case's runs.

usage: python -m integration.gpu.table RESULTS...
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COLUMNS = {
    "GPU checkpoint": ("checkpoint gpu lock", "checkpoint gpu checkpoint"),
    "dump": ("checkpoint gpu memory", "checkpoint heap", "checkpoint dump"),
    "sealed": ("checkpoint sealed",),
    "checkpoint": ("checkpoint all",),
    "restore": ("restore restore", "restore gpu memory", "restore memory"),
    "GPU restore": ("restore gpu restore", "restore gpu unlock"),
    "start": ("start",),
    "copy": ("copy",),
    "downtime": ("downtime",),
}


def main() -> None:
    rows = [row for path in sys.argv[1:] for row in json.loads(Path(path).read_text())]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["way"], str(row["card"])), []).append(row)
    heads = ("case", "way", "runs", "outcome", *COLUMNS, "card")
    print(f"| {' | '.join(heads)} |")
    print(f"| {' | '.join('---' for _ in heads)} |")
    for (case, way, card), runs in groups.items():
        outcomes = ", ".join(sorted({_outcome(run) for run in runs}))
        seconds = [_median(runs, phases) for phases in COLUMNS.values()]
        print(f"| {' | '.join((case, way, str(len(runs)), outcomes, *seconds, card))} |")


def _outcome(run: dict[str, Any]) -> str:
    if run["digests_equal"] is None:
        return str(run["outcome"])
    return "equal to the last bit" if run["digests_equal"] else "DIFFERENT"


def _median(runs: list[dict[str, Any]], phases: tuple[str, ...]) -> str:
    """Seconds of *phases* together, in the median of those runs that have them."""
    sums = [
        sum(run["seconds"].get(phase, 0) for phase in phases)
        for run in runs
        if any(phase in run["seconds"] for phase in phases)
    ]
    return f"{statistics.median(sums):.1f} s" if sums else ""


if __name__ == "__main__":
    main()
