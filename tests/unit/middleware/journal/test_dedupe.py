"""One flush writes at most one event an item."""

from dataclasses import replace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.journal.journal import Entry, _dedupe
from callboard.middleware.message.attempt import Attempt
from callboard.sql.rows import Event, OutcomeState

EVENT = Event(1, 1, 1, "succeeded", 0.0, 0.0, 1)


def entry(item: int, attempt: int, state: OutcomeState) -> Entry:
    """An attempt that ended."""
    return Entry(
        Attempt(1, item, attempt, [], {}), replace(EVENT, item=item, attempt=attempt, state=state), state == "failed"
    )


STATES: Any = st.sampled_from(["succeeded", "failed", "skipped", "retrying"])


@given(st.lists(st.builds(entry, st.integers(0, 3), st.integers(1, 3), cast("Any", STATES)), max_size=12))
def test_a_flush_has_one_event_an_item_and_success_goes_first(entries: list[Entry]) -> None:
    now, later = _dedupe(entries)
    assert len({e.event.item for e in now}) == len(now)
    assert {id(e) for e in entries} == {id(e) for e in now} | {id(e) for e in later}
    assert len(now) + len(later) == len(entries)
    for chosen in now:
        rivals = [e for e in later if e.event.item == chosen.event.item]
        if any(e.event.state == "succeeded" for e in rivals):
            assert chosen.event.state == "succeeded"
