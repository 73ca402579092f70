"""Messages of paused jobs are kept, whatever the database says at first."""

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from callboard.middleware.attempts.parking import Parking
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process import process
from callboard.sql.writes import claims
from tests.support.process_parts import process_without_database
from tests.support.workers import wait_until

TIMEOUT = 60.0


class AckTracker:
    """Notes what it is to acknowledge."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def release(self, acks: list[int], nacks: list[int]) -> None:
        self.acknowledged += acks


def test_they_are_kept_when_the_database_takes_writes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a failover to a server that only reads yet. Given up they would stay with their worker: held, so that
    nobody looks for them, and never run.
    """
    answers = [psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT"), None]
    kept: list[Any] = []
    acks = AckTracker()

    def park(_: Any, messages: list[Any]) -> None:
        if (error := answers.pop(0)) is not None:
            raise error
        kept.extend(messages)

    monkeypatch.setattr(claims, "park", park)
    monkeypatch.setattr(process, "RETRY_SECONDS", 0.01)
    message = SimpleNamespace(acks=acks, tag=7)
    Parking(process_without_database(), defers=True).park(Attempt(1, 2, 3, [message], {}))
    assert wait_until(lambda: acks.acknowledged == [7], TIMEOUT)
    assert kept == [(1, 2, 3)]
