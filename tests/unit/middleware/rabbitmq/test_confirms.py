"""Publishing to RabbitMQ: which messages it reports as confirmed, and what it leaves open."""

import gc
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.encoder import PickleEncoder

from callboard.commands.services.ports import free_ports
from callboard.middleware.message import envelope
from callboard.middleware.publish.transport import Answer, Unpublishable, Unreachable
from callboard.middleware.rabbitmq import confirms as module
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher, _encode
from callboard.sql.rows import Outgoing

#: The files that this process has open.
OPEN = Path("/proc/self/fd")


def outgoing(item: int, queue: str) -> Outgoing:
    """A message of the outbox."""
    return Outgoing(
        1, item, 1, 0, suspect=False, actor="a", queue=queue, message_id=f"m-{item}",
        args=b'{"args":[],"kwargs":{}}', options=None, sent_ms=0, outbox=item,
    )  # fmt: skip


def test_confirms_of_a_second_try_are_merged_with_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three queues are missing; the connection breaks when the second try has confirmed only the last."""
    transport = ConfirmingPublisher(RabbitmqBroker(url="amqp://nobody"))
    batch = [outgoing(0, "one"), outgoing(1, "two"), outgoing(2, "three")]

    def send(messages: dict[int, object], answers: list[Answer]) -> list[int]:
        if len(messages) == 3:
            answers[0] = True
            return [1, 2]
        answers[2] = True
        raise Unreachable("gone")

    monkeypatch.setattr(transport, "_send", send)
    monkeypatch.setattr(transport, "_declare", lambda _: None)
    with pytest.raises(Unreachable, match="gone") as caught:
        transport.publish(batch)
    assert caught.value.answers == [True, False, True]


class Events(ConfirmingPublisher):
    """A publisher whose loop runs these steps, one each time; `waits` are the seconds that it was given."""

    def __init__(self, *steps: str) -> None:
        super().__init__(RabbitmqBroker(url="amqp://nobody"))
        channel: Any = object()
        self._channel = channel
        self._unconfirmed = {1: 0, 2: 1}
        self.steps, self.waits = list(steps), list[float]()

    def _run_loop(self, seconds: float) -> None:
        self.waits.append(seconds)
        step = self.steps.pop(0)
        if step == "confirm":
            self._unconfirmed.popitem()
        elif step == "close":
            self._channel = None
        elif step == "block":
            self._blocked = "memory is low"


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        (["another channel ended", "confirm", "another channel ended", "confirm"], 0),
        (["confirm", "close"], 1),
        (["block", "confirm", "confirm"], 0),
    ],
)
def test_the_wait_for_confirms_outlasts_other_events(steps: list[str], left: int) -> None:
    events = Events(*steps)
    events._await_confirms()
    assert (len(events._unconfirmed), events.steps) == (left, [])
    assert events.waits[0] > module.BLOCKED_SECONDS
    assert (events.waits[-1] <= module.BLOCKED_SECONDS) == ("block" in steps)


def test_the_wait_for_confirms_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONFIRM_SECONDS", 0.0)
    events = Events()
    events._await_confirms()
    assert events.waits == []


def test_a_broker_that_confirms_nothing_is_told_of_until_it_confirms_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes each new connection, so only the time of each batch shows it."""
    monkeypatch.setattr(module, "CONFIRM_SECONDS", 0.0)
    events = Events()
    monkeypatch.setattr(events, "_open", lambda: None)
    monkeypatch.setattr(events, "_send_declared", lambda *_: events._give_up())
    with pytest.raises(Unreachable, match="confirmed nothing within 0 s"):
        events.publish([outgoing(0, "one")])
    events.serve(reconnect=True)
    assert "confirmed nothing" in str(events.trouble)
    events._unconfirmed = {1: 0}
    events._on_confirm(SimpleNamespace(method=pika.spec.Basic.Ack(1)))
    assert events.trouble is None


def test_a_batch_that_is_confirmed_in_part_is_not_told_of_as_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONFIRM_SECONDS", 0.0)
    events = Events()
    events._confirmed = {0}
    with pytest.raises(Unreachable):
        events._give_up()
    assert events.trouble is None


def test_a_block_that_comes_between_two_batches_is_told_of() -> None:
    events = Events("block")
    with pytest.raises(Unreachable, match="memory is low"):
        events.serve(reconnect=True)
    assert events.trouble == "memory is low"


@contextmanager
def no_garbage() -> Iterator[None]:
    """A file that is not closed stays open."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_nodes_that_are_away_leave_no_socket_open() -> None:
    nodes = [pika.ConnectionParameters("127.0.0.1", port) for port in free_ports(3)]
    transport = ConfirmingPublisher(RabbitmqBroker(parameters=[{"host": n.host, "port": n.port} for n in nodes]))
    with no_garbage():
        before = None
        for _ in range(4):
            with pytest.raises(Unreachable):
                transport.depth("default")
            before = before or sum(1 for _ in OPEN.iterdir())
        assert sum(1 for _ in OPEN.iterdir()) == before
    transport.close()


# What can't be published --------------------------------------------------------------------------------------------


def test_a_message_larger_than_rabbitmq_takes_is_unpublishable() -> None:
    out = replace(outgoing(1, "work"), args=b'{"args":["%s"],"kwargs":{}}' % (b"x" * 2_000))
    size = len(envelope.body(out))
    assert len(_encode(out, size).body) == size
    with pytest.raises(Unpublishable, match=f"has {size:,} bytes, and RabbitMQ takes {size - 1:,} at most"):
        _encode(out, size - 1)


@pytest.mark.parametrize("name", ["q" * 253, "q" * 251 + "é"])
def test_a_message_for_a_queue_whose_name_is_too_long_is_unpublishable(name: str) -> None:
    assert _encode(outgoing(1, "q" * 252), None).queue == "q" * 252
    with pytest.raises(Unpublishable, match="name of its queue has 253 bytes, and 252 are allowed"):
        _encode(outgoing(1, name), None)


def test_a_message_whose_encoder_raises_is_unpublishable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(PickleEncoder):
        def decode(self, data: bytes) -> Any:
            raise AttributeError("no class Thing")

    monkeypatch.setattr(envelope, "get_encoder", Broken)
    with pytest.raises(Unpublishable, match="can't be encoded: AttributeError: no class Thing"):
        _encode(outgoing(1, "work"), None)


@pytest.mark.parametrize("sent_ms", [-1, -(2**63), 2**63 - 1])
def test_a_message_with_any_timestamp_can_be_written(sent_ms: int) -> None:
    message = _encode(replace(outgoing(1, "work"), sent_ms=sent_ms), None)
    assert pika.frame.Header(1, 0, message.properties).marshal()
    assert json.loads(message.body)["message_timestamp"] == sent_ms


def test_a_row_of_another_encoder_is_left_to_the_processes_that_have_it() -> None:
    """A publisher without the app's encoder, as of `callboard sweep`, would fail items that nothing is wrong with."""
    publisher = ConfirmingPublisher(RabbitmqBroker(url="amqp://nobody"))
    pickled = replace(outgoing(0, "work"), args=pickle.dumps({"args": [1], "kwargs": {}}))
    answers: list[Any] = [False, False]
    messages = publisher._encode_all(enumerate([pickled, outgoing(1, "work")]), answers)
    assert (list(messages), answers) == ([1], [False, False])
    assert "name the module that calls dramatiq.set_encoder() in CALLBOARD_ACTORS" in (publisher.trouble or "")
