"""Prints the tables of docs/fleet.md, and writes its plot.

usage: python -m integration.fleet
"""

from __future__ import annotations

from integration.documents import REPO
from integration.fleet import plot, report

PLOT = REPO / "docs/fleet.svg"

if __name__ == "__main__":
    for table in report.TABLES:
        print(table())
    PLOT.write_text(plot.drawn(report.shares(), report.NODES))
