"""docs/fleet.md has what the simulation gives."""

from __future__ import annotations

import pytest

from integration.documents import REPO
from integration.fleet import plot, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = REPO / "docs"


@pytest.mark.parametrize("table", report.TABLES, ids=lambda table: table.__name__)
def test_the_tables_are_those_of_the_simulation(table: Callable[[], str]) -> None:
    assert f"\n\n{table()}\n" in (DOCS / "fleet.md").read_text()


def test_the_plot_is_that_of_the_simulation() -> None:
    drawn = plot.drawn(report.shares(), report.NODES)
    assert (DOCS / "fleet.svg").read_text() == drawn


def test_what_a_row_of_the_table_adds_up_to_is_all_pods() -> None:
    for line in report.arrivals().splitlines()[2:]:
        _, pods, _, verified, _, left = (cell.strip() for cell in line.strip("|").split("|"))
        parts = [int(stage.rpartition(" ")[2]) for stage in left.split(", ") if stage]
        assert int(pods) == int(verified) + sum(parts)
