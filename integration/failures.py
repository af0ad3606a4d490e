"""A plugin of pytest: tells of a failure when it happens, as a run cut short has no summary."""

from __future__ import annotations

from typing import cast

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers say nothing themselves
        reporter = cast("TerminalReporter", config.pluginmanager.get_plugin("terminalreporter"))
        config.pluginmanager.register(_Telling(reporter))


class _Telling:
    def __init__(self, reporter: TerminalReporter) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            said = report.longreprtext.splitlines()
            why = next((line[1:].strip() for line in said if line.startswith("E ")), said[-1])
            self._reporter.write_line(f"\n{report.nodeid} ({report.when}): {why}", red=True)
