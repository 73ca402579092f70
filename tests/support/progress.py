"""A line a percent, at most one a second, instead of a dot a test: how far the run is, and each failure."""

import time
from typing import Any

import pytest


class Progress:
    """A plug-in of the process that pytest was started in."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._session: Any = None
        self._ended: set[str] = set()
        self._percent = 0
        self._began = time.monotonic()
        self._written = 0.0
        self._announced = False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Say once how many tests there are."""
        if not self._announced:
            self._announced = True
            self._write(f"{len(ids):,} tests, {self._config.getoption('numprocesses')} at a time; a line a percent:")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """No dot for a test that passed."""
        if not report.passed or hasattr(report, "wasxfail"):
            return None
        return "passed" if report.when == "call" else "", "", ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write a line for a failure, and one when another percent of the tests is over."""
        if report.failed:
            self._write(f"FAILED {report.nodeid} ({report.when})")
        if report.when != "teardown":
            return
        self._ended.add(report.nodeid)
        percent = 100 * len(self._ended) // max(self._session.testscollected, 1)
        now = time.monotonic()
        if percent > self._percent and (now > self._written + 1 or percent == 100):
            self._percent, self._written = percent, now
            minutes, seconds = divmod(round(now - self._began), 60)
            self._write(f"{percent:3} % after {minutes}:{seconds:02}")

    def _write(self, line: str) -> None:
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        terminal.write_line(line)
        terminal.flush()
