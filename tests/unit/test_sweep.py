"""What the sweep says of errors: nothing of a database that is away, everything of what somebody has to mend."""

import logging
from typing import Any

import psycopg
import pytest

from callboard.middleware import complaint
from callboard.middleware.sweep import Sweep


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
