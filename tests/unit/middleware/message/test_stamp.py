"""A stamp is read as it was written; anything else is no stamp."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.message import stamp
from callboard.middleware.message.stamp import OPTION, Stamp

IDS = st.integers(1, 2**63 - 1)
STAMPS = st.builds(Stamp, IDS, st.integers(0, 2**31 - 1), st.integers(1, 1000), st.integers(0, 1000), st.booleans())


@given(STAMPS)
def test_a_stamp_is_read_as_it_was_written(stamped: Stamp) -> None:
    assert stamp.read({OPTION: stamped.option(), "max_retries": 3}) == stamped


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_retries": 3},
        {OPTION: None},
        {OPTION: 7},
        {OPTION: {}},
        {OPTION: {"job": 1}},
        {OPTION: {"job": "1", "item": 2, "attempt": 1}},
        {OPTION: {"job": 1, "item": None, "attempt": 1}},
        {OPTION: {"job": 1, "item": 2, "attempt": 1.5}},
        {OPTION: {"job": 1, "item": 2, "attempt": [1]}},
        {OPTION: {"job": 2**63, "item": 2, "attempt": 1}},
        {OPTION: {"job": 1, "item": 2**31, "attempt": 1}},
        {OPTION: {"job": 1, "item": -1, "attempt": 1}},
        {OPTION: {"job": True, "item": 1, "attempt": 1}},
    ],
)
def test_a_malformed_stamp_is_read_as_none(options: dict[str, Any]) -> None:
    assert stamp.read(options) is None


def test_a_stamp_of_a_later_release_is_read() -> None:
    """Releases may run side by side: a field that this one doesn't know must not lose the item."""
    stamped = Stamp(1, 2, 3, 4)
    assert stamp.read({OPTION: {**stamped.option(), "later": True}}) == stamped


@given(STAMPS)
def test_a_message_without_its_stamp_has_its_own_options_only(stamped: Stamp) -> None:
    options = {OPTION: stamped.option(), "eta": 5, "retries": 1, "broker_priority": 2}
    assert stamp.without(options) == {"retries": 1, "broker_priority": 2}
