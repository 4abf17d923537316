"""For pytest on an emulated host: what was decided before that host ended is not run again.

    python -m pytest -p tests.framework.outcomes --outcomes FILE

Each test's outcome is written to FILE as soon as it is known. Those that FILE has already are left
out; one that failed there fails the run all the same.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

PASSED, FAILED = "passed", "failed"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, metavar="FILE")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--outcomes")
    if file is not None:
        config.pluginmanager.register(Outcomes(config, file))


class Outcomes:
    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._config = config
        self._file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self._earlier = {
            test: outcome for outcome, _, test in (line.partition(" ") for line in lines)
        }
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None]:
        """After all others, which share the tests between hosts."""
        yield
        decided = [item for item in items if item.nodeid in self._earlier]
        items[:] = [item for item in items if item.nodeid not in self._earlier]
        config.hook.pytest_deselected(items=decided)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
            # Else it would be told at the end, which this host may never see.
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            if terminal is not None:
                terminal.write_line(f"\n{report.longreprtext}")
        if report.when == "teardown":
            outcome = FAILED if report.nodeid in self._failed else PASSED
            with self._file.open("a") as file:
                file.write(f"{outcome} {report.nodeid}\n")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._earlier:
            session.exitstatus = pytest.ExitCode.OK
        if session.exitstatus == pytest.ExitCode.OK and FAILED in self._earlier.values():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test, outcome in self._earlier.items():
            if outcome == FAILED:
                terminalreporter.write_line(f"FAILED {test} - on the host before")
