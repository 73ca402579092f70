"""The stamp: what goes into a message comes out of it, and what isn't ours is foreign."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.message import stamp
from callboard.middleware.message.stamp import OPTION, Stamp

IDS = st.integers(1, 2**63 - 1)
STAMPS = st.builds(
    Stamp,
    IDS,
    st.integers(0, 2**31 - 1),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.booleans(),
)


@given(STAMPS)
def test_a_stamp_comes_out_as_it_went_in(mark: Stamp) -> None:
    assert stamp.read({OPTION: mark.option(), "max_retries": 3}) == mark


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
def test_what_is_no_stamp_is_none(options: dict[str, Any]) -> None:
    assert stamp.read(options) is None


def test_a_stamp_of_a_later_release_is_read() -> None:
    """Workers are rolled forward and back: a field that this release doesn't know is no reason to lose the item."""
    mark = Stamp(1, 2, 3, 4)
    assert stamp.read({OPTION: {**mark.option(), "later": True}}) == mark


@given(STAMPS)
def test_a_message_without_its_stamp_has_its_own_options_only(mark: Stamp) -> None:
    options = {OPTION: mark.option(), "eta": 5, "retries": 1, "broker_priority": 2}
    assert stamp.without(options) == {"retries": 1, "broker_priority": 2}
