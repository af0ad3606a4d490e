"""The table of all cases: what became of each on each edition.

A case is a test with the mark ``case(text, ends)``: what is moved, and how that ends when the test
passes: RESTORED, REFUSED, or a known limit with its reason; or a dictionary of these, by edition.
"""

from __future__ import annotations

from typing import cast

import pytest

from integration.node import rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from _pytest.terminal import TerminalReporter

CASE = "case"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note in the report which case the test was, and on which edition it ran."""
    report = yield
    mark = item.get_closest_marker(CASE)
    edition = item.funcargs.get("edition")
    if mark is not None and isinstance(edition, rootfs.Edition):
        text, ends = mark.args
        if isinstance(ends, dict):
            ends = ends[edition.suite]
        report.user_properties.append((CASE, (text, edition.suite, ends)))
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print a row for each case, and a column for each edition."""
    table: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if not isinstance(report, pytest.TestReport):
                continue  # of a file that could not be collected
            for text, suite, ends in _case(report):
                became = ends if outcome == "passed" else _unless_passed(outcome, report)
                table.setdefault(text, {})[suite] = became
    if table:
        suites = [edition.suite for edition in rootfs.EDITIONS.values()]
        terminalreporter.section("cases")
        width = max(map(len, table))
        terminalreporter.line(f"{'case':<{width}}  " + "  ".join(f"{s:<12}" for s in suites))
        for text, row in table.items():
            cells = "  ".join(f"{row.get(suite, '-'):<12}" for suite in suites)
            terminalreporter.line(f"{text:<{width}}  {cells}".rstrip())


def _case(report: pytest.TestReport) -> list[tuple[str, str, str]]:
    """Its text, its edition and how it ends, if the test was one."""
    return [
        cast("tuple[str, str, str]", value)
        for name, value in report.user_properties
        if name == CASE
    ]


def _unless_passed(outcome: str, report: pytest.TestReport) -> str:
    if outcome == "skipped" and isinstance(report.longrepr, tuple):
        return f"skipped ({report.longrepr[2].removeprefix('Skipped: ')})"
    return outcome.upper()
