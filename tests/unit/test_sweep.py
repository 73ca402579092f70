"""What the sweep does with errors: it says nothing of a database that is away, everything of what somebody has to mend,
and goes on with what has nothing to do with it.
"""

import logging
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from callboard.middleware import complaint
from callboard.middleware import sweep as sweeping
from callboard.middleware.sweep import Sweep
from callboard.sql import writes

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
            sweep._stopping.set()
            raise error

    monkeypatch.setattr(complaint, "PAUSE", 0.0)
    pool: Any = Pool()
    sweep = Sweep(pool, lambda: pytest.fail("nobody asks the broker"))
    with caplog.at_level(logging.WARNING):
        sweep.run()
    assert (str(error) in caplog.text) == said


def test_what_fails_keeps_nothing_else_from_being_done(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []

    def bury(_: object, worker: int) -> None:
        done.append(worker)
        if worker == 1:
            raise psycopg.errors.UndefinedColumn("no such column")
        if worker == 2:
            raise ValueError("strange")

    monkeypatch.setattr(complaint, "PAUSE", 0.0)
    monkeypatch.setattr(writes, "dead_workers", lambda _: [1, 2, 3])
    monkeypatch.setattr(sweeping, "bury", bury)
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

    monkeypatch.setattr(complaint, "PAUSE", 0.0)
    sweeping._each(OPEN, [search, done.append])
    assert done == [OPEN]
    assert "it takes too long" in caplog.text


def test_an_outage_ends_the_round() -> None:
    done: list[object] = []

    def away(_: object) -> None:
        raise psycopg.OperationalError("gone")

    closed: Any = SimpleNamespace(closed=True)
    with pytest.raises(psycopg.OperationalError):
        sweeping._each(closed, [away, done.append])
    assert done == []
