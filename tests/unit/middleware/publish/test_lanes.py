"""Which lane an item is in."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.message.envelope import encode_args
from callboard.middleware.publish.lanes import NAME_CHARS, lane_of

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda one: st.lists(one, max_size=3)
)


@pytest.mark.parametrize(
    ("by", "lane"),
    [
        ("customer", '"acme"'), ("number", "7"), ("whole", "7.0"), ("nothing", "null"), ("0", '"first"'),
        ("1", '{"a": 1, "b": [2]}'), ("2", ""), ("region", ""), ("customer.id", ""),
    ],
)  # fmt: skip
def test_the_lane_is_the_value_as_json_or_empty(by: str, lane: str) -> None:
    kwargs = {"customer": "acme", "number": 7, "whole": 7.0, "nothing": None}
    assert lane_of(encode_args(("first", {"b": [2], "a": 1}), kwargs), by) == lane


@given(ANYTHING)
def test_any_value_is_a_lane_that_the_database_takes(value: Any) -> None:
    lane = lane_of(encode_args((), {"x": value}), "x")
    assert lane == lane_of(encode_args((1,), {"y": 2, "x": value}), "x")
    assert 0 < len(lane) <= NAME_CHARS
    assert lane.isascii()
    assert "\x00" not in lane


def test_long_values_have_different_lanes() -> None:
    one, other = (lane_of(encode_args((), {"x": "x" * 5_000 + end}), "x") for end in "ab")
    assert one != other


@pytest.mark.parametrize("args", [b"", b"\x80\x04pickle", b"[1]", json.dumps({"args": []}).encode()])
def test_arguments_that_cant_be_decoded_are_in_the_empty_lane(args: bytes) -> None:
    assert lane_of(args, "customer") == ""
