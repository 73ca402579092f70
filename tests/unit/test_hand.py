"""Of the messages that come for one item, the one that carries its attempt runs."""

import threading
from typing import Any

from callboard.middleware.attempt import Attempt
from callboard.middleware.hand import Hand
from callboard.middleware.stamp import Stamp
from callboard.sql.rows import Claim
from tests.delivered import Delivered

TIMEOUT = 20.0


def test_the_next_attempt_runs_though_a_copy_of_the_last_is_being_asked_for() -> None:
    """A worker that was killed between a commit and its acknowledgement leaves both."""
    asked, go_on = threading.Event(), threading.Event()

    def claim(mark: Stamp) -> Claim | None:
        if mark.attempt == 1:
            asked.set()
            assert go_on.wait(TIMEOUT)
            return None
        return Claim("waiting", 2, 0, 1, taken=True, holder_alive=True)

    unused: Any = None
    hand = Hand(adopt=unused, claim=claim, give_back=unused, note=unused, park=unused, defers=True)
    last: list[Attempt | None] = []

    def take(attempt: int) -> Attempt | None:
        message: Any = Delivered(Stamp(1, 0, attempt, suspect=attempt > 1), redelivered=True)
        return hand.take(message)

    asking = threading.Thread(target=lambda: last.append(take(1)))
    asking.start()
    assert asked.wait(TIMEOUT)
    assert take(1) is None
    found = take(2)
    go_on.set()
    asking.join(TIMEOUT)
    assert last == [None]
    assert found is not None
    assert found.number == 2
