"""What an operator waits for: the commands that look at a node, and the one that sets it up."""

from __future__ import annotations

import statistics

from integration.benchmarks.comparison import Bench, Row, bar_row, timed
from integration.node import bare
from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.node.node import Node

    Work = Callable[[], object]

TIMES = 7
CHECKPOINT = "told"


def median_s(node: Node, *argv: str, between: Work = lambda: None) -> float:
    """Of a command that is run again and again."""
    taken = []
    for _ in range(TIMES):
        # It exits 1 where grit doctor finds something broken.
        taken.append(timed(lambda: node.run(argv, check="doctor" not in argv)))
        between()
    return statistics.median(taken)


def shown_help(bench: Bench, name: str) -> Row:
    return bar_row(name, median_s(bench.node, "grit", "--help"), 0.150)


def doctor(bench: Bench, name: str) -> Row:
    """All checks but the live ones."""
    return bar_row(name, median_s(bench.node, "grit", "doctor"), 3.0)


def explain(bench: Bench, name: str) -> Row:
    """A checkpoint, whose records, manifest and logs are read."""
    checkpoints.take(bench.counter, CHECKPOINT)
    told = f"{bench.counter.spec.namespace}/{CHECKPOINT}"
    return bar_row(name, median_s(bench.node, "grit", "explain", told), 0.5)


def install(bench: Bench, name: str) -> Row:
    """On a node that has only the package, with the agent's unit, and without a restart."""
    node = bench.bare_node

    def take_back() -> None:
        node.run([bare.GRIT, "uninstall"])

    return bar_row(name, median_s(node, bare.GRIT, "install", "--agent", between=take_back), 5.0)


ROWS: dict[str, Callable[[Bench, str], Row]] = {
    "operators.help": shown_help,
    "operators.doctor": doctor,
    "operators.explain": explain,
    "operators.install": install,
}
