"""The message of a stored item has the bytes that Dramatiq would write, and is read as Dramatiq decodes it."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.encoder import JSONEncoder, PickleEncoder
from dramatiq.errors import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.message import envelope, stamp
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.submission.enqueue import foreign_item
from callboard.sql.call_bytes import unpacked
from callboard.sql.rows import Outgoing

TEXT = st.text(st.characters(), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.dictionaries(TEXT.filter(lambda name: name not in ("callboard", "broker_priority")), JSON, max_size=3)


def outgoing(
    args: Any = (), kwargs: Any = None, options: Any = None, *, actor: str = "work", sent_ms: int | None = 5,
    **more: Any,
) -> Outgoing:  # fmt: skip
    """A stored item, as the encoder writes it."""
    given_ = {"job": 7, "item": 3, "attempt": 2, "epoch": 1, "suspect": False, "queue": "default", "message_id": "7-3"}
    return Outgoing(
        **{**given_, **more}, actor=actor, args=envelope.encode_args(args, kwargs or {}),
        options=envelope.encode_options(options or {}), sent_ms=sent_ms,
    )  # fmt: skip


@pytest.fixture
def pickled() -> Iterator[None]:
    """An app that pickles its messages."""
    dramatiq.set_encoder(PickleEncoder())
    try:
        yield
    finally:
        dramatiq.set_encoder(JSONEncoder())


@given(args=st.lists(JSON, max_size=3), kwargs=st.dictionaries(TEXT, JSON | st.just(math.nan), max_size=3))
def test_arguments_are_stored_as_dramatiqs_own_encoder_writes_them(args: list[Any], kwargs: dict[str, Any]) -> None:
    expected = JSONEncoder().encode({"args": args, "kwargs": kwargs})
    stored = envelope.encode_args(args, kwargs)
    assert (unpacked(stored), envelope.encode_args(tuple(args), kwargs)) == (expected, stored)


@given(
    st.lists(JSON, max_size=3), st.dictionaries(TEXT, JSON, max_size=3), OPTIONS, TEXT, TEXT, TEXT, st.booleans(),
    st.integers(0, 2**50),
)  # fmt: skip
def test_the_body_is_what_dramatiq_would_write(
    args: list[Any], kwargs: dict[str, Any], options: dict[str, Any], actor: str, queue: str, message_id: str,
    suspect: bool, sent_ms: int,
) -> None:  # fmt: skip
    out = outgoing(
        args, kwargs, options, actor=actor, queue=queue, message_id=message_id, suspect=suspect, sent_ms=sent_ms
    )
    assert json.loads(envelope.body(out)) == json.loads(envelope.message(out).encode())
    decoded = Message.decode(envelope.body(out))
    assert list(decoded.args) == args
    assert decoded.kwargs == kwargs
    assert stamp.without(decoded.options) == {name: value for name, value in options.items() if name != "eta"}
    assert stamp.read(decoded.options) == Stamp(7, 3, 2, 1, suspect)
    assert (decoded.actor_name, decoded.queue_name, decoded.message_id) == (actor, queue, message_id)
    assert decoded.message_timestamp == sent_ms


CALLS = st.lists(st.tuples(st.lists(JSON, max_size=2), st.dictionaries(TEXT, JSON, max_size=2)), min_size=2, max_size=5)


def carrier(calls: list[tuple[list[Any], dict[str, Any]]]) -> Outgoing:
    first, *more = (outgoing(*call, item=3 + n, message_id=f"7-{3 + n}") for n, call in enumerate(calls))
    return replace(first, more=tuple(more))


@given(CALLS)
def test_a_message_that_carries_many_items_comes_apart_into_their_messages(calls: list[Any]) -> None:
    out = carrier(calls)
    body = envelope.body(out)
    assert json.loads(body) == json.loads(envelope.message(out).encode())
    assert Message.decode(body).message_id == f"7-3-{2 + len(calls)}"
    for n, part in enumerate(envelope.parts(envelope.read(body))):
        alone = envelope.read(envelope.body(replace(outgoing(*calls[n]), item=3 + n, message_id=f"7-{3 + n}")))
        assert part == alone


def test_the_properties_of_a_message_that_carries_many_items_say_so() -> None:
    found = envelope.properties(carrier([([1], {}), ([2], {})]))
    assert (found.correlation_id, found.message_id) == ("7/3-4", "7-3-4")


@pytest.mark.usefixtures("pickled")
def test_a_message_of_another_encoder_carries_many_items_too() -> None:
    parts = envelope.parts(envelope.read(envelope.body(carrier([([(1, 2)], {}), ([b"x"], {"a": {1}})]))))
    assert [(part.args, part.kwargs) for part in parts] == [(((1, 2),), {}), ((b"x",), {"a": {1}})]


def test_nan_is_encoded_as_dramatiq_encodes_it() -> None:
    decoded = Message.decode(envelope.body(outgoing([float("nan"), float("inf")])))
    assert str(decoded.args) == "(nan, inf)"


def test_a_message_without_a_time_gets_the_time_of_its_publishing() -> None:
    before = outgoing(sent_ms=None)
    assert Message.decode(envelope.body(before)).message_timestamp > 1_700_000_000_000


@pytest.mark.usefixtures("pickled")
def test_another_encoder_writes_the_whole_message() -> None:
    out = outgoing([{1, 2}], {"when": b"\x00"}, {"broker_priority": 3, "retries": 1})
    decoded = Message.decode(envelope.body(out))
    assert decoded.args == ({1, 2},)
    assert decoded.kwargs == {"when": b"\x00"}
    assert decoded.options["retries"] == 1
    assert stamp.read(decoded.options) == Stamp(7, 3, 2, 1)
    properties = envelope.properties(out)
    assert properties.content_type == "application/octet-stream"
    assert properties.priority == 3


def test_the_properties_tell_what_the_message_is() -> None:
    found = envelope.properties(outgoing(options={"broker_priority": 4}, sent_ms=1_700_000_000_123))
    assert found.message_id == "7-3"
    assert found.correlation_id == "7/3"
    assert found.type == "work"
    assert found.app_id == "callboard"
    assert found.timestamp == 1_700_000_000
    assert found.content_type == "application/json"
    assert found.delivery_mode == 2
    assert found.priority == 4


def test_a_priority_is_read_from_the_option_only() -> None:
    assert envelope.properties(outgoing(options={"note": "broker_priority"})).priority is None


@pytest.mark.parametrize("priority", ["high", 300, -1, 1.5, None, [1]])
def test_a_priority_that_amqp_does_not_have_is_left_out(priority: Any) -> None:
    """It would make the publisher fail again and again, with all that is published in the same batch."""
    assert envelope.properties(outgoing(options={"broker_priority": priority})).priority is None


@pytest.mark.parametrize("text", ["x" * 300, "ä" * 200, "half \ud800 a pair"])
def test_a_name_that_is_too_long_for_amqp_is_cut(text: str) -> None:
    found = envelope.properties(outgoing(actor=text, message_id=text))
    found.encode()
    assert len(found.type.encode()) <= 255


def test_arguments_that_the_encoder_refuses_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for refused, why in [(object(), "object"), ({1}, "set"), (circle, "Circular"), ({(1,): 2}, "keys")]:
        with pytest.raises((TypeError, ValueError), match=why):
            envelope.encode_args((refused,), {})


@pytest.mark.parametrize("options", [{}, {"odd": math.nan}])  # msgspec refuses NaN, and Dramatiq's decoder takes it
@pytest.mark.parametrize("lacks", [["message_id"], ["message_timestamp"], ["message_id", "message_timestamp"]])
@pytest.mark.parametrize("as_null", [True, False])
def test_a_message_without_id_or_time_has_one_key_however_often_it_comes(
    options: dict[str, Any], lacks: list[str], *, as_null: bool
) -> None:
    """Dramatiq makes up both, anew at each delivery: a message that is delivered again would be another item."""
    fields = {
        "queue_name": "q", "actor_name": "a", "args": [1], "kwargs": {}, "options": options, "message_id": "m",
        "message_timestamp": 5,
    }  # fmt: skip
    body = {name: None if name in lacks else value for name, value in fields.items() if as_null or name not in lacks}
    came = []
    for moment in (1.0, 2.0):
        with patch("time.time", lambda now=moment: now):
            came.append(foreign_item(envelope.read(json.dumps(body).encode())))
    first, second = came
    assert first.key == second.key
    assert (first.message_id, first.sent_ms) == (
        "" if "message_id" in lacks else "m", 1_000 if "message_timestamp" in lacks else 5,
    )  # fmt: skip


@patch("time.time", lambda: 1.0)  # a message without a timestamp is of now
def assert_same(body: bytes) -> None:
    """Read by us, a body gives what Dramatiq's decoder gives, or is refused where that refuses it."""
    try:
        wanted = Message.decode(body)
    except DecodeError:
        with pytest.raises(DecodeError):
            envelope.read(body)
        return
    try:
        found = envelope.read(body)
    except DecodeError:  # fields that are not a message's
        assert not fits(wanted)
        return
    if isinstance(wanted.message_timestamp, float | None):
        wanted = wanted.copy(message_timestamp=envelope.timestamp_ms(wanted.message_timestamp))
    identity: object = wanted.message_id
    if identity is None:
        wanted = wanted.copy(message_id="")
    # As text too: 1 is not 1.0, and NaN is not itself.
    assert repr(found) == repr(wanted)


def fits(message: Any) -> bool:
    """Return whether a worker's threads can use the message's fields."""
    names = (message.actor_name, message.queue_name, message.message_id or "")
    return (
        all(isinstance(name, str) and name.isprintable() for name in names)
        and all(names[:2])
        and type(message.options) is type(message.kwargs) is dict
        and type(message.message_timestamp) in (int, float, type(None))
    )


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (1_700_000_000_000, 1_700_000_000_000), (1_700_000_000_000.75, 1_700_000_000_000), (0, 0), (-1, -1),
        (None, 1_000), (math.nan, 1_000), (math.inf, 1_000), ("soon", 1_000),
        (10**18, envelope.LAST_MS), (1e300, envelope.LAST_MS), (-(10**18), envelope.FIRST_MS),
    ],
)  # fmt: skip
@patch("time.time", lambda: 1.0)
def test_any_time_of_a_message_has_one_that_can_be_stored(given: object, stored: int) -> None:
    assert envelope.timestamp_ms(given) == stored
    assert type(envelope.timestamp_ms(given)) is int


NUMBERS = st.integers() | st.floats()
FIELDS = st.fixed_dictionaries(
    {
        "queue_name": TEXT | st.just("default"),
        "actor_name": TEXT | st.just("work"),
        "args": st.lists(JSON | NUMBERS, max_size=3),
        "kwargs": st.dictionaries(TEXT, JSON | NUMBERS, max_size=3),
        "options": st.dictionaries(TEXT, JSON, max_size=3),
        "message_id": TEXT,
        "message_timestamp": st.integers(),
    }
)


@given(FIELDS, st.booleans(), st.booleans())
def test_a_body_is_read_as_dramatiq_decodes_it(fields: dict[str, Any], ascii_: bool, spaced: bool) -> None:
    text = json.dumps(fields, ensure_ascii=ascii_, separators=None if spaced else (",", ":"))
    assert_same(text.encode("utf-8", "surrogatepass"))


@given(FIELDS, st.sampled_from(sorted(["queue_name", "args", "kwargs", "options", "message_timestamp"])), JSON)
def test_a_body_that_is_no_message_is_refused(fields: dict[str, Any], name: str, value: Any) -> None:
    assert_same(json.dumps({**fields, name: value}).encode())
    assert_same(json.dumps({**fields, name + "_": value}).encode())
    assert_same(json.dumps({key: found for key, found in fields.items() if key != name}).encode())


@pytest.mark.parametrize("time", [None, 1.5, math.nan])
@pytest.mark.parametrize("options", [None, [], "x"])
def test_a_body_without_a_whole_time_and_with_options_that_are_none_is_refused(time: object, options: object) -> None:
    """Another error than DecodeError would end its consumer again and again, and nobody else's message would come."""
    fields = {"queue_name": "q", "actor_name": "a", "args": [], "kwargs": {}, "options": options}
    with pytest.raises(DecodeError):
        envelope.read(json.dumps({**fields, "message_id": "m", "message_timestamp": time}).encode())


@pytest.mark.parametrize(
    "args",
    [
        "[NaN]", "[Infinity, -Infinity]", '["\\ud800"]', "[1e999]", "[1E400, -0.0, 1e-400]", '[{"a": 1, "a": 2}]',
        "[123456789012345678901234567890]", "[1.0, 1e5, 0.1]", '["\\u0000"]', "[" * 100 + "]" * 100,
        "[" * 100_000 + "]" * 100_000, "[1,]", "null",
        "[9223372036854775808, -9223372036854775809, 18446744073709551616]", "[0.30000000000000004]", "[01]",
        '["\x7f"]', '["\x01"]', "[" + "1" * 5000 + "]",
    ],
)  # fmt: skip
def test_extreme_numbers_and_texts_are_read_as_dramatiq_decodes_them(args: str) -> None:
    rest = '"kwargs":{},"options":{},"message_id":"1","message_timestamp":5'
    assert_same(f'{{"queue_name":"default","actor_name":"work","args":{args},{rest}}}'.encode())


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"args":', b'{"args":[]}\x00'])
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        envelope.read(body)


@pytest.mark.usefixtures("pickled")
def test_a_body_of_another_encoder_is_read_by_that() -> None:
    out = outgoing([{1, 2}], {"when": b"\x00"})
    assert envelope.read(envelope.body(out)).args == ({1, 2},)
