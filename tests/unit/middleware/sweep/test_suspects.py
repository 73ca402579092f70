"""The items that may have lost their messages."""

import pytest

from callboard.middleware.sweep import lost_messages
from callboard.middleware.sweep.lost_messages import Suspects


def test_those_that_a_queue_has_passed_are_missing_and_the_others_stay() -> None:
    suspects = Suspects()
    for search in (1, 2, 3):
        suspects.add([(search, 0, 1, "slow"), (search, 1, 1, "fast")], search)
    suspects.add([(1, 0, 1, "slow")], 3)  # it is one already
    suspects.pass_queue("slow", 0)
    assert not suspects.missing
    suspects.pass_queue("slow", 2)
    assert list(suspects.missing) == [(1, 0, 1), (2, 0, 1)]
    assert suspects.queued == {"slow": {(3, 0, 1): 3}, "fast": {(1, 1, 1): 1, (2, 1, 1): 2, (3, 1, 1): 3}}


def test_a_queue_has_room_for_others_when_its_suspects_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_messages, "QUEUE_SUSPECTS", 3)
    suspects = Suspects()
    suspects.add([(1, 0, 1, "q"), (1, 1, 1, "q"), (2, 2, 1, "q")], 1)
    suspects.pass_queue("q", 1)
    suspects.add([(7, 0, 1, "q")], 2)
    assert not suspects.queued["q"], "those that are missing count, too"
    suspects.drop_jobs(range(1, 2), set())
    suspects.drop((2, 2, 1))
    assert not suspects.missing
    suspects.add([(7, item, 1, "q") for item in range(4)], 2)
    suspects.drop_jobs(range(100), {7})
    assert list(suspects.queued["q"]) == [(7, 0, 1), (7, 1, 1), (7, 2, 1)]
