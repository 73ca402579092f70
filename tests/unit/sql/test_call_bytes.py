"""Whatever an app's encoder writes reads again as it was, and what JSON has in each row is not stored."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callboard.sql.call_bytes import BY_KEYWORD, BY_POSITION, packed, unpacked

#: What the bytes of a call are made of, and others.
PARTS = [
    b'{"args":[',
    b"],",
    b'"kwargs":{',
    b"}}",
    b"}",
    b'],"kwargs":{}}',
    b'{"args":[],"kwargs":{',
    b"\0",
    b"\1",
    b"\2",
]


@given(st.binary(max_size=3) | st.lists(st.sampled_from(PARTS) | st.binary(max_size=2), max_size=5).map(b"".join))
@example(b"")
@example(b'{"args":[],"kwargs":{}}')
@example(b'{"args":[],"kwargs":{"kwargs":{}}}')
def test_what_an_encoder_writes_reads_again_as_it_was(encoded: bytes) -> None:
    assert unpacked(packed(encoded)) == encoded


@pytest.mark.parametrize(
    ("encoded", "stored"),
    [
        (b'{"args":[],"kwargs":{}}', BY_POSITION),
        (b'{"args":[1,"a"],"kwargs":{}}', BY_POSITION + b'1,"a"'),
        (b'{"args":[],"kwargs":{"a":1}}', BY_KEYWORD + b'"a":1'),
        (b'{"args":[1],"kwargs":{"a":1}}', b'{"args":[1],"kwargs":{"a":1}}'),
        (b"\x80\x04pickle", b"\x80\x04pickle"),
        (b"\1compressed", b"\0\1compressed"),
    ],
)
def test_a_row_keeps_what_differs_between_calls(encoded: bytes, stored: bytes) -> None:
    assert packed(encoded) == stored
