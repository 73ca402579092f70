"""An item whose next crash would be its last runs with nothing beside it that could be charged with its death."""

import threading
from typing import Any

from callboard.middleware.attempts.isolation import Isolation
from callboard.middleware.attempts.outcome import SUCCEEDED
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.stamp import Stamp
from callboard.sql import timings
from callboard.sql.rows import Claim
from tests.support.deliveries import Delivered
from tests.support.process_parts import PlayedInFlight, process_without_database
from tests.support.workers import wait_until

TIMEOUT = 60.0


def _copy(item: int) -> Any:
    return Delivered(Stamp(1, item, 1), redelivered=True)


def test_it_waits_until_what_ended_beside_it_is_on_record() -> None:
    """Were it to begin before, its death would be charged to what had ended, too."""
    asked: list[int] = []

    def claim(attempt: Attempt) -> Claim:
        asked.append(attempt.item)
        return Claim(
            "waiting", 1, timings.MAX_CRASHES - 1 if attempt.item else 0, None, taken=True, holder_alive=True
        )

    hand = PlayedInFlight(claim)
    beside = hand.admit(_copy(0))
    assert beside is not None
    taken: list[Attempt | None] = []
    alone = threading.Thread(target=lambda: taken.append(hand.admit(_copy(1))))
    alone.start()
    assert wait_until(lambda: [attempt.item for attempt in hand.given_back] == [1], TIMEOUT)
    hand.finish(beside, SUCCEEDED)
    assert beside in hand._isolation._running
    assert hand.admit(_copy(0)) is None
    assert taken == []
    assert asked == [0, 1]
    hand.acknowledge(hand.ended)
    alone.join(TIMEOUT)
    assert [one.key for one in taken if one] == [(1, 1)]
    assert asked == [0, 1, 1]


def test_who_is_led_by_one_that_runs_does_not_wait_for_one_that_waits_for_it() -> None:
    """A batch is one call: its items have their turn together."""
    turns = Isolation(process_without_database())
    lead, mate, alone = (Attempt(1, item, 1, [], {}) for item in range(3))
    turns.enter(lead)
    entered = threading.Event()

    def wait() -> None:
        turns.enter(alone, alone=True)
        entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert wait_until(lambda: turns._alone is alone, TIMEOUT)
    turns.enter(mate, lead=lead)
    turns.leave(lead)
    assert not entered.is_set()
    turns.leave(mate)
    assert entered.wait(TIMEOUT)
    waiting.join(TIMEOUT)
