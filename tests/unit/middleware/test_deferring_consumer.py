"""The wrapped consumer of a broker acknowledges after the commit, also if it blocks or loses its connection."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ConnectionClosed, DecodeError

from callboard.middleware import deferring_consumer
from callboard.middleware.deferring_consumer import DeferringConsumer
from callboard.middleware.message.consumers import Consumers
from callboard.middleware.message.delivery import release
from callboard.middleware.message.stamp import Stamp
from tests.support.process_parts import process_without_database
from tests.support.workers import wait_until

TIMEOUT = 300.0


class StockConsumer(Consumer):
    """A consumer with `count` messages; its first `failures` acknowledgements lose the connection."""

    def __init__(self, count: int, *, failures: int = 0) -> None:
        options = ({"callboard": Stamp(1, number, 1).option()} for number in range(count))
        self.messages = [MessageProxy(Message("default", "work", (), {}, own)) for own in options]
        self.failures = failures
        self.undecodable = 0
        self.done: list[tuple[str, int]] = []
        self.closed = False

    def __next__(self) -> MessageProxy | None:
        if self.undecodable:
            self.undecodable -= 1
            raise DecodeError("no JSON", b"{", None)
        return self.messages.pop(0) if self.messages else None

    def ack(self, message: MessageProxy) -> None:
        self._finish("ack", message)

    def nack(self, message: MessageProxy) -> None:
        self._finish("nack", message)

    def _finish(self, how: str, message: MessageProxy) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionClosed(ConnectionError("gone"))
        self.done.append((how, message.options["callboard"]["item"]))

    def close(self) -> None:
        self.closed = True


class Deferring:
    """A consumer around that, with its messages fetched."""

    def __init__(self, stock: StockConsumer) -> None:
        self.process = process_without_database()
        self.consumers = Consumers()
        self.listeners: list[Any] = []
        runtime: Any = SimpleNamespace(
            process=self.process, consumers=self.consumers, when_written=self.listeners.append
        )
        self.stock = stock
        self.consumer = DeferringConsumer(stock, "default", runtime)
        self.messages = list(iter(lambda: next(self.consumer), None))


def test_a_deferred_message_is_acknowledged_when_it_is_released() -> None:
    deferring = Deferring(StockConsumer(3))
    assert deferring.consumers.prefetched() == [(1, 0), (1, 1), (1, 2)]
    first, second, third = deferring.messages
    first.delivery.deferred = True
    deferring.consumer.ack(first)
    deferring.consumer.nack(second)
    assert wait_until(lambda: deferring.stock.done == [("nack", 1)], TIMEOUT)
    release([(first.delivery, False), (third.delivery, True), (third.delivery, True)])
    assert wait_until(lambda: deferring.consumers.open_deliveries() == 0, TIMEOUT)
    assert wait_until(lambda: deferring.stock.done == [("nack", 1), ("ack", 0), ("nack", 2)], TIMEOUT)


class RedisBroker:
    """As much of Dramatiq's class as a consumer uses."""

    def __init__(self, heartbeat_timeout: int) -> None:
        self.heartbeat_timeout = heartbeat_timeout
        self.maintenance_chance = 1_000
        self.away = False
        self.asked: list[tuple[str, int]] = []

    def do_qsize(self, queue: str) -> int:
        self.asked.append((queue, self.maintenance_chance))
        if self.away:
            raise RuntimeError("its client raises errors of its own")
        return 0


@pytest.mark.parametrize(("heartbeat", "asked"), [(1, [("default", 1_000_000)]), (60_000, [])])
def test_what_a_dead_worker_held_in_redis_is_put_back_while_nothing_comes(
    heartbeat: int, asked: list[tuple[str, int]]
) -> None:
    """Dramatiq has Redis look for it at one call of a thousand, and an idle consumer calls once a second."""
    stock: Any = StockConsumer(0)
    stock.broker = RedisBroker(heartbeat)
    consumer = Deferring(stock).consumer
    stock.broker.asked.clear()
    assert wait_until(lambda: next(consumer) is None and stock.broker.asked == asked, TIMEOUT)
    assert stock.broker.maintenance_chance == 1_000


def test_a_redis_that_goes_away_meanwhile_is_a_lost_connection() -> None:
    stock: Any = StockConsumer(0)
    stock.broker = RedisBroker(60_000)
    deferring = Deferring(stock)
    stock.broker.away = True
    deferring.consumer._maintained_at -= 31.0
    with pytest.raises(ConnectionClosed):
        next(deferring.consumer)
    assert stock.broker.maintenance_chance == 1_000


@pytest.mark.parametrize("heartbeat", [None, 1])
def test_a_broker_of_the_apps_may_have_heartbeats_of_its_own(heartbeat: int | None) -> None:
    stock: Any = StockConsumer(1)
    stock.broker = SimpleNamespace(heartbeat_timeout=heartbeat)
    deferring = Deferring(stock)
    deferring.consumer._maintained_at -= 31.0
    assert next(deferring.consumer) is None
    assert [message.delivery.redelivered for message in deferring.messages] == [False]


@pytest.mark.parametrize(("age", "claimed"), [(10.0, False), (31.0, True)])
def test_an_old_message_of_redis_may_come_for_the_second_time(age: float, *, claimed: bool) -> None:
    """Its broker requeues what a worker has in hand that it has not heard of for a minute, and does not say so."""
    stock: Any = StockConsumer(0)
    stock.broker = RedisBroker(60_000)
    sent = int((time.time() - age) * 1000)
    stock.messages = [MessageProxy(Message("default", "work", (), {}, {}, message_timestamp=sent))]
    assert [message.delivery.redelivered for message in Deferring(stock).messages] == [claimed]


@pytest.mark.parametrize(
    "wrong", [{"message_timestamp": "soon"}, {"kwargs": None}, {"message_id": 5}, {"actor_name": ""}]
)
def test_a_message_that_would_break_a_thread_is_rejected(wrong: dict[str, Any]) -> None:
    """Redis gives a consumer all that somebody has pushed to its list."""
    stock = StockConsumer(2)
    stock.messages[0]._message = replace(stock.messages[0]._message, **wrong)
    deferring = Deferring(stock)
    assert deferring.messages == []  # a look that found none
    assert [message.options["callboard"]["item"] for message in iter(lambda: next(deferring.consumer), None)] == [1]
    assert wait_until(lambda: stock.done == [("nack", 0)], TIMEOUT)
    assert deferring.consumers.prefetched() == [(1, 1)]


def test_a_message_that_can_not_even_be_rejected_stops_no_other() -> None:
    """Redis's consumer finds the id by which it rejects a message among the options."""
    stock = StockConsumer(2)
    stock.messages[0]._message = replace(stock.messages[0]._message, options=None)  # type: ignore[arg-type]
    deferring = Deferring(stock)
    assert deferring.messages == []
    deferring.consumer.ack(next(deferring.consumer))  # type: ignore[arg-type]
    assert wait_until(lambda: stock.done == [("ack", 1)], TIMEOUT)


def test_a_message_that_can_not_be_decoded_does_not_end_the_consumer() -> None:
    """Dramatiq would make another, and what Redis's has fetched beside it would wait until the worker ends."""
    stock = StockConsumer(1)
    stock.undecodable = 1
    deferring = Deferring(stock)
    assert deferring.messages == []
    assert next(deferring.consumer) is not None


def test_a_message_without_a_time_or_of_another_queue_is_one_of_this_queue_and_of_now() -> None:
    stock: Any = StockConsumer(2)
    stock.broker = RedisBroker(60_000)
    stock.messages[0]._message = stock.messages[0]._message.copy(message_timestamp=None)
    stock.messages[1]._message = stock.messages[1]._message.copy(queue_name="other")
    began = time.time() * 1000
    first, second = Deferring(stock).messages
    assert began - 1 <= first.message_timestamp <= time.time() * 1000
    assert (first.queue_name, second.queue_name) == ("default", "default")


def test_a_broker_may_say_that_a_message_comes_again() -> None:
    stock = StockConsumer(2)
    stock.messages[1].redelivered = True  # type: ignore[attr-defined]
    assert [message.delivery.redelivered for message in Deferring(stock).messages] == [False, True]


def test_a_consumer_of_a_brokers_own_class_can_be_asked_as_before() -> None:
    consumer: Any = Deferring(StockConsumer(2)).consumer
    assert consumer.failures == 0
    with pytest.raises(AttributeError, match="queued_message_ids"):
        consumer.queued_message_ids  # noqa: B018


def test_an_acknowledgement_is_tried_again_after_the_connection_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when Dramatiq has closed the consumer since, and made another."""
    monkeypatch.setattr(deferring_consumer, "RETRY_SECONDS", 0.01)
    deferring = Deferring(StockConsumer(2, failures=3))
    deferring.consumer.close()
    assert deferring.stock.closed
    for message in deferring.messages:
        deferring.consumer.ack(message)
    assert wait_until(lambda: deferring.stock.done == [("ack", 0), ("ack", 1)], TIMEOUT)
    assert wait_until(lambda: not deferring.consumers.acks, TIMEOUT)


def test_a_closing_consumer_waits_for_the_commit_in_progress() -> None:
    deferring = Deferring(StockConsumer(1))
    deferring.process.stopping = True
    closing = threading.Thread(target=deferring.consumer.close, daemon=True)
    closing.start()
    assert wait_until(lambda: len(deferring.listeners) == 1, TIMEOUT)
    assert closing.is_alive()
    release([(deferring.messages[0].delivery, False)])  # the commit, and then
    deferring.listeners[0]()
    closing.join(TIMEOUT)
    assert deferring.stock.done == [("ack", 0)]
    assert deferring.stock.closed
    assert not deferring.consumers.acks
