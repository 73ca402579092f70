"""What a running item may send."""

import pytest

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.submission import enqueue
from callboard.middleware.submission.item_encoding import BadItem
from callboard.sql.rows import NewItem

ITEM = NewItem(0, "work", "default", "m", b"x" * 5, b"y" * 5, 0)


@pytest.mark.parametrize("limits", [("CHILDREN_LIMIT", 3), ("CHILDREN_LIMIT_BYTES", 35)])
def test_an_item_sends_no_more_than_goes_into_one_transaction(
    limits: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the actor and its callbacks send count together, and those that went out do not count."""
    monkeypatch.setattr(enqueue, *limits)
    attempt = Attempt(1, 0, 1, [], {})
    for hooks in (False, False, True):
        attempt.hooks = hooks
        assert attempt.add_child(enqueue._within_limits(ITEM, attempt))
    with pytest.raises(BadItem, match=r"an item may send (3|100,000) messages"):
        enqueue._within_limits(ITEM, attempt)
    attempt.take_sent()
    assert enqueue._within_limits(ITEM, attempt) is ITEM
