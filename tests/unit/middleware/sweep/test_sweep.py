"""Rounds of the sweep. An outage of the database is not logged, every other error is, and the other steps run."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from callboard.middleware.process import outage
from callboard.middleware.sweep import sweep as sweeping
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql import timings
from callboard.sql.rows import ALL_JOBS, JobPage, Lease
from callboard.sql.writes import sweep as sweep_writes
from callboard.sql.writes import workers

OPEN: Any = SimpleNamespace(closed=False)


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (psycopg.OperationalError("gone"), False),
        (psycopg.InterfaceError("closed"), False),
        (psycopg.errors.UndefinedColumn("no such column"), True),
        (psycopg.errors.UniqueViolation("twice"), True),
        (ValueError("strange"), True),
    ],
)
def test_an_error_that_is_no_outage_is_logged(
    error: Exception, logged: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Process:
        def write(self, statement: object) -> Any:
            raise error

    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 0.0)
    process: Any = Process()
    sweep = Sweep(process, lambda: pytest.fail("nobody asks the broker"))
    with caplog.at_level(logging.WARNING):
        sweep._periodic.run_step()
    assert (str(error) in caplog.text) == logged


def test_a_failing_step_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []

    def rescue(_: object, worker: int) -> None:
        done.append(worker)
        if worker == 1:
            raise psycopg.errors.UndefinedColumn("no such column")
        if worker == 2:
            raise ValueError("strange")

    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(workers, "dead_workers", lambda _: [1, 2, 3])
    monkeypatch.setattr(sweeping, "rescue", rescue)
    unused: Any = None
    sweep = Sweep(unused, unused)
    steps = [step for step in sweep._due() if step is sweeping._rescue_dead]
    with pytest.raises(psycopg.errors.UndefinedColumn):  # so that this connection is lent to nobody any more
        sweeping._run(OPEN, [*steps, lambda _: done.append("the next")])
    assert done == [1, 2, 3, "the next"]
    assert "no such column" in caplog.text
    assert "strange" in caplog.text


@pytest.mark.parametrize("error", [psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected])
def test_a_statement_that_the_server_cancels_is_no_outage(
    error: type[psycopg.Error], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a statement timeout that one step always exceeds would put off every rescue too."""
    done: list[object] = []

    def search(_: object) -> None:
        raise error("it takes too long")

    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 0.0)
    sweeping._run(OPEN, [search, done.append])
    assert done == [OPEN]
    assert "it takes too long" in caplog.text


def test_what_one_round_leaves_of_the_open_jobs_the_next_one_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs are open, a round is short, and they need not wait for the time of the next sample."""
    ends = {0: 500, 500: 1_000, 1_000: ALL_JOBS.last}
    pages: list[JobPage] = []
    searches: list[object] = []
    monkeypatch.setattr(sweep_writes, "page_of_open_jobs", lambda _, after, __: JobPage(after, ends[after]))
    monkeypatch.setattr(sweep_writes, "sample_jobs", lambda _, page: pages.append(page))
    for name in ("_close", "_stop_without_actor"):
        monkeypatch.setattr(sweeping, name, lambda *_, **__: None)
    unused: Any = None
    sweep = Sweep(unused, unused)
    search: Any = SimpleNamespace(more=True, run=lambda *_: searches.append(_))
    monkeypatch.setattr(sweep, "_search", search)
    looks = (sweep._look_at_jobs, sweep._search_lost)
    for _ in range(4):
        sweeping._run(OPEN, [step for step in sweep._due() if step in looks])
    assert pages == [JobPage(after, last) for after, last in ends.items()]
    assert len(searches) == 4


class Database:
    """A database by the test's clock, which answers while `there` is true."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.there, self.clock = 1_000.0, True, 5_000.0
        self.rescued: list[float] = []
        clock = SimpleNamespace(monotonic=lambda: self.now, monotonic_ns=lambda: 0)
        monkeypatch.setattr("callboard.middleware.sweep.sweep.time", clock)
        monkeypatch.setattr(Sweep, "_elected", lambda *_: Lease(anything=True, clock=self.clock, set_back=0.0))
        monkeypatch.setattr(sweeping, "transaction", lambda _: nullcontext())
        monkeypatch.setattr(Sweep, "round", self._round)
        self.sweep = Sweep(cast("Any", self), cast("Any", None))

    def _round(self, _: object) -> None:
        if sweeping._rescue_dead in list(self.sweep._due()):
            self.rescued.append(self.now)

    def write(self, statement: Callable[[Any], float]) -> float:
        if not self.there:
            raise psycopg.OperationalError("gone")
        return statement(None)

    def pass_time(self, seconds: float) -> None:
        """Sweep every second."""
        for _ in range(round(seconds)):
            self.sweep._step()
            self.now += 1
            self.clock += 1


def test_a_round_that_leaves_open_jobs_to_the_next_is_followed_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """So short rounds come to each of very many jobs as soon as long ones would."""
    sweep = Database(monkeypatch).sweep
    assert sweep._step() == sweeping.PERIOD_SECONDS
    sweep._page_end = 150
    assert sweep._step() == sweeping.MORE_SECONDS < sweeping.PERIOD_SECONDS
    sweep._page_end, sweep._search.more = 0, True
    assert sweep._step() == sweeping.MORE_SECONDS


def test_a_process_that_starts_gives_workers_some_time_to_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as much as after an outage: it may replace a dead worker, whose items have waited for its start."""
    database = Database(monkeypatch)
    database.pass_time(8)
    assert database.rescued[0] == 1_000 + timings.DEAD_AFTER_SECONDS / 2


@pytest.mark.parametrize("before", [0, 30])
def test_after_an_outage_no_worker_is_rescued_before_it_had_time_to_beat(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a process that started in the outage."""
    database = Database(monkeypatch)
    database.pass_time(before)
    database.there = False
    database.pass_time(5)
    database.there, again = True, database.now
    database.rescued.clear()
    database.pass_time(20)
    assert database.rescued[0] == again + timings.DEAD_AFTER_SECONDS


def test_after_a_freeze_no_worker_is_rescued_before_it_had_time_to_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(monkeypatch)
    database.pass_time(30)
    database.now += timings.DEAD_AFTER_SECONDS + 1
    again = database.now
    database.rescued.clear()
    database.pass_time(20)
    assert database.rescued[0] == again + timings.DEAD_AFTER_SECONDS


@pytest.mark.parametrize("leap", [-3_600.0, 12.0, 3_600.0])
def test_after_a_leap_of_its_clock_no_worker_is_rescued_before_it_had_time_to_beat(
    leap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set forward, every heartbeat and every lease of a submission is old at once. Set back, none is."""
    database = Database(monkeypatch)
    database.pass_time(30)
    database.clock += leap
    database.now += 2
    leapt = database.now
    database.rescued.clear()
    database.pass_time(30)
    wait = timings.SUBMISSION_LEASE_SECONDS / 3 if leap > 0 else 0
    assert leapt + wait <= database.rescued[0] <= leapt + wait + 6


def test_an_outage_ends_the_round() -> None:
    done: list[object] = []

    def away(_: object) -> None:
        raise psycopg.OperationalError("gone")

    closed: Any = SimpleNamespace(closed=True)
    with pytest.raises(psycopg.OperationalError):
        sweeping._run(closed, [away, done.append])
    assert done == []
