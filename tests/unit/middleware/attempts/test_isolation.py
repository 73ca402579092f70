"""An item whose next crash is its last runs alone, so that its death counts for no other item."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from callboard.middleware.attempts.isolation import Isolation
from callboard.middleware.attempts.outcome import SUCCEEDED
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.stamp import Stamp
from callboard.sql.rows import Claim
from tests.support.deliveries import Delivered
from tests.support.process_parts import PlayedInFlight, process_without_database
from tests.support.workers import wait_until

TIMEOUT = 300.0


def _copy(item: int) -> Any:
    return Delivered(Stamp(1, item, 1), redelivered=True)


def test_an_isolated_item_waits_until_the_outcomes_beside_it_are_committed() -> None:
    """If it began before, its death would count as a crash of those, too."""

    def claim(attempt: Attempt) -> Claim:
        isolate = in_flight.asked[-1] == (1, False)
        return Claim("waiting", 1, 2 * attempt.item, None, taken=not isolate, holder_alive=True, isolate=isolate)

    in_flight = PlayedInFlight(claim)
    beside = in_flight.admit(_copy(0))
    assert beside is not None
    taken: list[Attempt | None] = []
    alone = threading.Thread(target=lambda: taken.append(in_flight.admit(_copy(1))))
    alone.start()
    assert wait_until(lambda: in_flight._isolation._alone is not None, TIMEOUT)
    in_flight.finish(beside, SUCCEEDED)
    assert beside in in_flight._isolation._running
    assert in_flight.admit(_copy(0)) is None
    assert taken == []
    assert in_flight.asked == [(0, False), (1, False)]
    in_flight.acknowledge(in_flight.ended)
    alone.join(TIMEOUT)
    assert [one.key for one in taken if one] == [(1, 1)]
    assert in_flight.asked == [(0, False), (1, False), (1, True)]
    assert in_flight.done == []  # an item that was claimed and given back could be charged with a death meanwhile


def test_an_attempt_whose_lead_runs_does_not_wait_for_one_that_waits_for_the_lead() -> None:
    """A batch is one call, so its items run together."""
    isolation = Isolation(process_without_database())
    lead, mate, alone = (Attempt(1, item, 1, [], {}) for item in range(3))
    isolation.enter(lead)
    entered = threading.Event()

    def wait() -> None:
        isolation.enter(alone, alone=True)
        entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert wait_until(lambda: isolation._alone is alone, TIMEOUT)
    isolation.enter(mate, lead=lead)
    isolation.leave(lead)
    assert not entered.is_set()
    isolation.leave(mate)
    assert entered.wait(TIMEOUT)
    waiting.join(TIMEOUT)


def test_an_isolated_item_waits_for_no_long_one_and_no_other_waits_for_it_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one item that takes an hour would keep the process idle for an hour."""
    isolation = Isolation(process_without_database())
    long, alone, young, second = (Attempt(1, item, 1, [], {}) for item in range(4))
    isolation.enter(long)
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr("callboard.sql.timings.DEADLY_SECONDS", TIMEOUT)
        waits = [pool.submit(isolation.enter, alone, alone=True)]
        assert wait_until(lambda: isolation._alone is alone, TIMEOUT)
        waits.append(pool.submit(isolation.enter, young))
        assert not any(one.done() for one in waits)
        isolation._running[long] -= TIMEOUT  # it has run for long
        waits[0].result(TIMEOUT)
        assert not waits[1].done()
        isolation._running[alone] -= TIMEOUT
        waits[1].result(TIMEOUT)
        waits.append(pool.submit(isolation.enter, second, alone=True))  # waits for the young one only
        assert wait_until(lambda: isolation._alone is second, TIMEOUT)
        isolation.leave(alone)
        assert not waits[2].done()
        isolation.leave(young)
        waits[2].result(TIMEOUT)
    isolation.leave(second)
    isolation.enter(young)
