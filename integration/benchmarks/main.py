"""What grit-runtime costs, side by side with what a user would run instead, in one run.

A row's ratio is ours over theirs, as costs; its limit is the most that is allowed. Each figure is
the median of pairs that take turns, so that a slow moment of the machine meets both sides.
"""

from __future__ import annotations

import json
import sys

from integration.benchmarks import (
    control,
    gate,
    heap,
    kubernetes,
    operators,
    peer,
    shim,
    store,
    wrapper,
)
from integration.benchmarks.comparison import Bench, Row

ROWS = {
    **wrapper.ROWS,
    **control.ROWS,
    **gate.ROWS,
    **shim.ROWS,
    **heap.ROWS,
    **store.ROWS,
    **peer.ROWS,
    **kubernetes.ROWS,
    **operators.ROWS,
}


def main() -> None:
    arguments = [word for word in sys.argv[1:] if word != "--json"]
    chosen = [
        name for name in ROWS if not arguments or any(name.startswith(word) for word in arguments)
    ]
    if not chosen:
        sys.exit(f"no row {' '.join(arguments)}, only: {', '.join(ROWS)}")
    with Bench() as bench:
        rows = [ROWS[name](bench, name) for name in chosen]
    if "--json" in sys.argv:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        print_table(rows)
    if any(map(is_over, rows)):
        sys.exit(1)


def print_table(rows: list[Row]) -> None:
    print(f"{'row':<22}{'ours':>10}{'theirs':>10}{'ratio':>8}{'limit':>8}{'bound':>10}  unit")
    for row in rows:
        bound = f"{row.bound:10.4f}" if row.bound is not None else f"{'-':>10}"
        limit = f"{row.limit:8.2f}" if row.limit is not None else f"{'-':>8}"
        over = "  OVER" if is_over(row) else ""
        print(
            f"{row.name:<22}{row.ours:10.4f}{row.theirs:10.4f}{row.ratio:8.2f}{limit}"
            f"{bound}  {row.unit}{over}"
        )


def is_over(row: Row) -> bool:
    return row.limit is not None and row.ratio > row.limit


if __name__ == "__main__":
    main()
