"""What is reported of attempts in flight, and what is taken for hung."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from callboard.middleware.journal import running_rows
from callboard.middleware.journal.hang_detector import HangDetector
from callboard.middleware.journal.running_rows import LOOK_SECONDS, SLOW_SECONDS, RunningRows
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process.outage import OutageLog
from callboard.sql.rows import Running
from callboard.sql.writes import outcomes
from tests.support.process_parts import process_without_database


class Clock:
    """A clock that the test turns on."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that reports go by."""
    made = Clock()
    monkeypatch.setattr(running_rows, "time", made)
    return made


def test_a_job_is_reported_before_its_items_and_with_the_start_of_the_first(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def noted(*given: Any) -> set[Any]:
        calls.append(given[-1])
        return set()

    monkeypatch.setattr(outcomes, "report_running", noted)
    monkeypatch.setattr(outcomes, "touch_jobs", noted)
    rows = RunningRows(
        process_without_database(), OutageLog(logging.getLogger("callboard"), "%s"), HangDetector(lambda _: 0.0)
    )
    attempts = [
        Attempt(1, n, 1, [], {}, actor="work", started=clock.now - age) for n, age in enumerate((1.0, 3.0, 2.0))
    ]
    rows.report(lambda: attempts)
    assert calls[0] == {1: (None, 3.0)}
    assert {row.age for row in calls[1]} == {1.0, 2.0, 3.0}


def test_an_attempt_that_says_something_new_is_not_taken_for_hung(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_HUNG_AFTER", "60")
    written: list[Any] = []
    sampled: list[Any] = []

    def report(_: Any, __: Any, running: Sequence[Running]) -> set[tuple[int, int]]:
        for one in running:
            (sampled if one.stack else written).append(one)
        return {(one.job, one.item) for one in running}

    monkeypatch.setattr(outcomes, "report_running", report)
    monkeypatch.setattr(outcomes, "touch_jobs", lambda *_: set())
    outage = OutageLog(logging.getLogger("callboard"), "%s")
    rows = RunningRows(process_without_database(), outage, HangDetector(lambda _: 0.0))
    one = Attempt(1, 2, 1, [], {}, actor="work", started=clock.now)
    clock.now += SLOW_SECONDS + LOOK_SECONDS
    for second in range(300):
        one.step = f"page {second}"
        rows.report(lambda: [one])
        clock.now += 1
    assert (len(written), sampled) == (300, [])
    for _ in range(58):
        rows.report(lambda: [one])
        clock.now += 1
    assert sampled == []
    for _ in range(3):
        rows.report(lambda: [one])
        clock.now += 1
    assert len(sampled) == 1
