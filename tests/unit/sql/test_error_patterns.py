"""Messages of one cause have one pattern; messages of different causes have different ones."""

import time

import pytest

from callboard.sql.error_patterns import PATTERN_CHARS, pattern


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("item 5 is too large", "item 1234 is too large", "item # is too large"),
        ("price -12.50 below 0,99", "price 7 below 1.000,00", "price # below #"),
        ("no order ord_8Fh3kQ", "no order ord_77ab", "no order #"),
        ("no such row: 'abc'", 'no such row: "it\'s"', "no such row: <text>"),
        ("'price'", "'name'", "<text>"),
        ("can't read b'\\xff'", "can't read b''", "can't read <text>"),
        ("<Page object at 0x7f3a>", "<Page object at 0xdeadbeef>", "<Page object at #>"),
        ("job 3f2b8c1e-aaaa-bbbb-cccc-0123456789ab", "job aaaabbbb-cccc-dddd-eeee-ffffaaaabbbb", "job #"),
        ("bad digest cafebabe", "bad digest 00ffaa11", "bad digest #"),
        ("GET https://a.example/p/red-shoe?page=2 broke", "GET http://b.example/ broke", "GET <url> broke"),
        ("[Errno 2] No such file: /data/in/red.csv", "[Errno 2] No such file: /data/blue.csv", None),
        ("unknown user anna@example.com", "unknown user b.o+b@mail.example.org", "unknown user <email>"),
        ("missing [1, 2, 3]", "missing [17]", "missing [#]"),
        ("late: 2026-11-28T22:30:00+00:00", "late: 2026-01-02 03:04:05.678", "late: #"),
        ("two\n  lines 5", "two lines 6", "two lines #"),
        ("", "   ", "(no text)"),
        ("x '" + "a" * 600 + "'", "x '" + "b" * 700, "x <text>"),
    ],
)
def test_what_varies_is_replaced(one: str, other: str, expected: str | None) -> None:
    assert pattern(one) == pattern(other)
    assert expected in (None, pattern(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("400 for item 5", "500 for item 5"),
        (
            "404 Client Error: Not Found for url: https://a.example/1",
            "403 Client Error: Not Found for url: https://a.example/1",
        ),
        (
            "Client error '404 Not Found' for url 'https://a.example/1'",
            "Client error '403 Forbidden' for url 'https://a.example/1'",
        ),
        ("404, message='Not Found', url='https://a.example'", "429, message='Slow', url='https://a.example'"),
        ("HTTP Error 404: Not Found", "HTTP Error 410: Not Found"),
        ("Error code: 429 - {'error': 5}", "Error code: 500 - {'error': 5}"),
        ("GET failed, status_code=502", "GET failed, status_code=503"),
        ("the sender's name is missing", "the sender's address is missing"),
    ],
)
def test_what_tells_causes_apart_stays(one: str, other: str) -> None:
    assert pattern(one) != pattern(other)


def test_a_number_of_an_item_is_no_status() -> None:
    assert {pattern(f"row {n} is bad") for n in range(1000)} == {"row # is bad"}
    assert {pattern(f"{n} is not a price") for n in range(1000)} == {"# is not a price"}


@pytest.mark.parametrize("text", ["'" * 5000, "a-1" * 3000, "/a" * 3000, "x@" * 3000, "\\" * 5000, "'\\" * 3000])
def test_any_text_has_a_short_pattern_soon(text: str) -> None:
    began = time.thread_time()
    assert 0 < len(pattern(text)) <= PATTERN_CHARS
    assert time.thread_time() - began < 0.1
