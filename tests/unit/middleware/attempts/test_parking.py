"""Messages of paused jobs are parked also when the database refuses that at first."""

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from callboard.middleware.attempts.parking import Parking
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.delivery import Delivery
from callboard.middleware.process import process
from tests.support.deliveries import RecordedAcks
from tests.support.process_parts import process_without_database
from tests.support.workers import wait_until

TIMEOUT = 300.0


def test_messages_are_parked_when_the_database_takes_writes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may be read-only for a moment after a failover. Messages that were given up would stay held by their
    worker, so that the search for lost messages would not republish them.
    """
    answers = [psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT"), None]
    kept: list[Any] = []
    acks = RecordedAcks()

    def take(_: Any, messages: Sequence[Any]) -> None:
        if (error := answers.pop(0)) is not None:
            raise error
        kept.extend(messages)

    monkeypatch.setattr(process, "RETRY_SECONDS", 0.01)
    parked = Attempt(1, 2, 3, [Delivery(acks, 7, None)], {})
    Parking(process_without_database(), take, lambda: None).park(parked)
    assert wait_until(lambda: acks.acknowledged == [7], TIMEOUT)
    assert kept == [(1, 2, 3)]
