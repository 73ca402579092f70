"""Arrays reach PostgreSQL as they are."""

from typing import Any

import pytest

from callboard.sql.arrays import array
from callboard.sql.pool import Conn


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bytea", [b"", b"\0\xff", None, b'{"args":[1]}', b"NULL"]),
        ("bytea", [b"\\x00", b"x" * 70_000]),
        ("text", ["", "NULL", None, '"a\\b",{c}', "ä"]),
        ("bool", [True, False, None]),
        ("int", [1, None, 2**31 - 1]),
        ("float8", [0.5, -1.0]),
    ],
)
def test_an_array_is_read_as_it_was_written(conn: Conn, kind: str, values: list[Any]) -> None:
    [(found,)] = conn.execute(f"SELECT %s::{kind}[]".encode(), (array(kind, values),))
    assert found == values


@pytest.mark.parametrize(("kind", "values"), [("bytea", [None, None]), ("bytea", []), ("bool", [False]), ("int", [])])
def test_an_array_without_a_value_or_of_nothing_but_false_is_empty(conn: Conn, kind: str, values: list[Any]) -> None:
    assert conn.execute(f"SELECT %s::{kind}[]".encode(), (array(kind, values),)).fetchall() == [([],)]
