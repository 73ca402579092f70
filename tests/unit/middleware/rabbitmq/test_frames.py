"""Reading deliveries off a connection: each arrives once and complete, and all other frames go to pika."""

from itertools import pairwise
from typing import Any

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika import frame, spec

from callboard.middleware.rabbitmq.frames import delivery_reader

Taken = tuple[int, bytes, bool, bool]


def delivery(tag: int, body: bytes, limit: int = 3, *, again: bool = False, dead: bool = False) -> bytes:
    """The frames of a delivery as a server with this frame limit sends them."""
    method = spec.Basic.Deliver("ctag1.é", tag, again, "", "default")
    headers = {"a": 1, "x-death": [{"count": 1, "reason": "rejected"}]} if dead else {"a": 1}
    properties = pika.BasicProperties(headers=headers, message_id="m", delivery_mode=2)
    parts = [body[at : at + limit] for at in range(0, len(body), limit)]
    return b"".join(
        piece.marshal()
        for piece in (
            frame.Method(1, method),
            frame.Header(1, len(body), properties),
            *(frame.Body(1, part) for part in parts),
        )
    )


HEARTBEAT = frame.Heartbeat().marshal()
CONSUMED = frame.Method(1, spec.Basic.ConsumeOk("ctag1.é")).marshal()
CLOSE = frame.Method(1, spec.Channel.Close(406, "PRECONDITION_FAILED", 60, 80)).marshal()
#: A returned message: its header and body frames are no part of a delivery.
RETURNED = (
    frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "", "gone")).marshal()
    + frame.Header(1, 4, pika.BasicProperties()).marshal()
    + frame.Body(1, b"\x00\x3c\x00\x3c").marshal()
)
DELIVERIES = st.tuples(st.integers(1, 2**63), st.binary(max_size=40), st.booleans(), st.booleans())


class Connection:
    """A connection that only reads. `taken` has the deliveries, `left` the bytes that went to pika."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[Taken] = []
        self.left = b""
        made: Any = delivery_reader(self._take)
        self.pika = made.__new__(made)
        self.pika.bytes_received = 0
        monkeypatch.setattr(pika.SelectConnection, "_on_data_available", self._leave)

    def _take(self, tag: int, body: bytes, *, redelivered: bool, was_dead: bool) -> None:
        self.taken.append((tag, body, redelivered, was_dead))

    def _leave(self, data: bytes) -> None:
        self.left += data

    def feed(self, data: bytes) -> None:
        """Have pika take bytes off its socket: should it read them by another method, nothing would be `taken`."""
        self.pika._proto_data_received(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(DELIVERIES | st.sampled_from([HEARTBEAT, CONSUMED, CLOSE, RETURNED]), max_size=6),
    st.lists(st.integers(0, 400), max_size=8),
    st.integers(1, 50),
)
def test_deliveries_are_complete_however_the_bytes_are_cut(
    monkeypatch: pytest.MonkeyPatch, sent: list[Any], cuts: list[int], limit: int
) -> None:
    """Several frames in one piece, one in several pieces, and other frames in between."""
    with monkeypatch.context() as patch:
        connection = Connection(patch)
        stream = b"".join(
            one if isinstance(one, bytes) else delivery(one[0], one[1], limit, again=one[2], dead=one[3])
            for one in sent
        )
        places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
        for start, end in pairwise(places):
            connection.feed(stream[start:end])
        assert connection.taken == [one for one in sent if not isinstance(one, bytes)]
        assert connection.left == b"".join(one for one in sent if isinstance(one, bytes))


def test_a_heartbeat_inside_a_delivery_goes_to_pika(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat may stand between the frames of one message."""
    connection = Connection(monkeypatch)
    whole = delivery(5, b"abcdef")
    cut = whole.index(b"abc") - 7
    connection.feed(whole[:cut] + HEARTBEAT + whole[cut:])
    assert connection.taken == [(5, b"abcdef", False, False)]
    assert connection.left == HEARTBEAT


def test_bytes_of_deliveries_count_as_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise pika closes the connection to a busy server, which sends messages and no heartbeats."""
    connection = Connection(monkeypatch)
    whole = delivery(5, b"abcdef")
    connection.feed(whole)
    assert connection.pika.bytes_received == len(whole)


def test_bytes_that_are_no_frame_go_to_pika(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another protocol version answers with its protocol header, which pika refuses."""
    connection = Connection(monkeypatch)
    connection.feed(delivery(5, b"x") + b"AMQP\x00\x00\x09\x01")
    assert connection.taken == [(5, b"x", False, False)]
    assert connection.left == b"AMQP\x00\x00\x09\x01"
