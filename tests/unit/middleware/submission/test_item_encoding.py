"""Item keys: different values are different keys, and a row can hold each."""

import json
from datetime import date
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.submission.item_encoding import KEY_BYTES, key_text
from callboard.sql.json_values import is_storable

LONG = "https://shop.example/search?filter=" + "red,green," * 450


@pytest.mark.parametrize(
    "values",
    [
        [f"{LONG}&page={n}" for n in range(3)],
        ["\ud800", "\\ud800", '"\\ud800"', "\ud801"],
        ["a\x00", "a\\x00", '"a\\u0000"'],
        [1, "1", '"1"', 1.0, "1.0", [1], "[1]", (1, 1), True, "true", "True", {"a": 1}, '{"a": 1}', "", '""'],
        ["x" * KEY_BYTES, "x" * (KEY_BYTES + 1), key_text("x" * (KEY_BYTES + 1)), "é" * KEY_BYTES],
    ],
)
def test_different_values_are_different_keys(values: list[Any]) -> None:
    keys = [key_text(value) for value in values]
    assert len(set(keys)) == len(values)
    assert all(is_storable(key) and len(key.encode()) <= KEY_BYTES for key in keys)


def test_a_key_is_shown_as_it_is_unless_it_would_read_as_another_value() -> None:
    assert [key_text(value) for value in ("sku-7", "7-a", 7, "7", "été", (1, "a"))] == [
        "sku-7", "7-a", "7", '"7"', "été", '[1, "a"]',
    ]  # fmt: skip


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 1, float("nan"), [float("inf")], {"a": object()}])
def test_what_does_not_tell_its_value_is_no_key(value: object) -> None:
    """Two objects may have the same text, and a set has another text in another process."""
    with pytest.raises((TypeError, ValueError)):
        key_text(value)


def test_dates_numbers_and_ids_are_keys() -> None:
    values = [date(2027, 1, 31), Decimal("1.50"), UUID(int=1), b"x", PurePosixPath("/a")]
    assert [json.loads(key_text(value)) for value in values] == [
        "2027-01-31", "1.50", "00000000-0000-0000-0000-000000000001", "b'x'", "/a",
    ]  # fmt: skip


VALUES = st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.one_of(st.text(), st.integers())))


@given(VALUES, VALUES)
def test_equal_keys_are_of_equal_values(one: Any, other: Any) -> None:
    same = type(one) is type(other) and one == other
    assert (key_text(one) == key_text(other)) == same
    assert is_storable(key_text(one))
