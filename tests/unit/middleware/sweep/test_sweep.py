"""What the sweep does with errors: it says nothing of a database that is away, everything of what somebody has to mend,
and goes on with what has nothing to do with it.
"""

import logging
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from callboard.middleware.process import outage
from callboard.middleware.sweep import sweep as sweeping
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql import timings
from callboard.sql.writes import workers

OPEN: Any = SimpleNamespace(closed=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (psycopg.OperationalError("gone"), False),
        (psycopg.InterfaceError("closed"), False),
        (psycopg.errors.UndefinedColumn("no such column"), True),
        (psycopg.errors.UniqueViolation("twice"), True),
        (ValueError("strange"), True),
    ],
)
def test_an_error_that_does_not_pass_is_said(
    error: Exception, said: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool:
        def connection(self) -> Any:
            raise error

    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 0.0)
    pool: Any = Pool()
    sweep = Sweep(pool, lambda: pytest.fail("nobody asks the broker"))
    with caplog.at_level(logging.WARNING):
        sweep._periodic.run_step()
    assert (str(error) in caplog.text) == said


def test_what_fails_keeps_nothing_else_from_being_done(
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
    steps = [step for step in sweep._due() if step is sweeping._bury_dead]
    with pytest.raises(psycopg.errors.UndefinedColumn):  # so that this connection is lent to nobody any more
        sweeping._each(OPEN, [*steps, lambda _: done.append("the next")])
    assert done == [1, 2, 3, "the next"]
    assert "no such column" in caplog.text
    assert "strange" in caplog.text


@pytest.mark.parametrize("error", [psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected])
def test_what_the_server_breaks_off_is_no_outage(
    error: type[psycopg.Error], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit of the server's that one step never keeps would else put off all burials, too."""
    done: list[object] = []

    def search(_: object) -> None:
        raise error("it takes too long")

    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 0.0)
    sweeping._each(OPEN, [search, done.append])
    assert done == [OPEN]
    assert "it takes too long" in caplog.text


class Database:
    """Answers when it is there; by the test's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.there = 1_000.0, True
        self.buried: list[float] = []
        clock = SimpleNamespace(monotonic=lambda: self.now, monotonic_ns=lambda: 0)
        monkeypatch.setattr("callboard.middleware.sweep.sweep.time", clock)
        monkeypatch.setattr(Sweep, "_elected", lambda *_: True)
        monkeypatch.setattr(Sweep, "round", self._round)
        self.sweep = Sweep(cast("Any", self), cast("Any", None))

    def _round(self, _: object) -> None:
        if sweeping._bury_dead in list(self.sweep._due()):
            self.buried.append(self.now)

    def connection(self) -> Any:
        if not self.there:
            raise psycopg.OperationalError("gone")
        return nullcontext()

    def pass_time(self, seconds: float) -> None:
        """A look every second."""
        for _ in range(round(seconds)):
            self.sweep._look()
            self.now += 1


def test_who_only_starts_gives_others_some_time_to_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as much as after an outage: he may be the one for whose place what a dead worker held has waited."""
    database = Database(monkeypatch)
    database.pass_time(8)
    assert database.buried[0] == 1_000 + timings.DEAD_AFTER_SECONDS / 2


@pytest.mark.parametrize("before", [0, 30])
def test_after_an_outage_nobody_is_buried_before_he_had_time_to_be_heard(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by one that started in it."""
    database = Database(monkeypatch)
    database.pass_time(before)
    database.there = False
    database.pass_time(5)
    database.there, again = True, database.now
    database.buried.clear()
    database.pass_time(20)
    assert database.buried[0] == again + timings.DEAD_AFTER_SECONDS


def test_nor_after_a_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(monkeypatch)
    database.pass_time(30)
    database.now += timings.DEAD_AFTER_SECONDS + 1
    again = database.now
    database.buried.clear()
    database.pass_time(20)
    assert database.buried[0] == again + timings.DEAD_AFTER_SECONDS


def test_an_outage_ends_the_round() -> None:
    done: list[object] = []

    def away(_: object) -> None:
        raise psycopg.OperationalError("gone")

    closed: Any = SimpleNamespace(closed=True)
    with pytest.raises(psycopg.OperationalError):
        sweeping._each(closed, [away, done.append])
    assert done == []
