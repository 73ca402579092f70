"""Consumes one queue on a connection of its own; acknowledges when the journal has committed."""

import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

import pika
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.logging import get_logger
from dramatiq.message import Message
from dramatiq.worker import QUEUE_PREFETCH

from callboard.middleware.attempts.batch import takes_batches
from callboard.middleware.message import envelope, stamp
from callboard.middleware.message.delivery import Delivery
from callboard.middleware.process.outage import disconnected, reason
from callboard.middleware.rabbitmq.acks import UNREADABLE, AckTracker
from callboard.middleware.rabbitmq.confirms import address
from callboard.middleware.rabbitmq.frames import delivery_reader
from callboard.middleware.rabbitmq.prefetch import Prefetch
from callboard.middleware.runtime import Runtime

#: AMQP's reply code for a queue that does not exist.
NOT_FOUND = 404
AMQP_ERRORS = (AssertionError, pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError)


class RabbitmqMessage(MessageProxy):
    """A delivered message, or one of those that a delivery carries."""

    def __init__(self, broker: RabbitmqBroker, message: Message[Any], delivery: Delivery) -> None:
        super().__init__(message)
        self.broker = broker
        self.delivery = delivery


class RabbitmqConsumer(Consumer):
    """Consumes one queue on a connection of its own."""

    def __init__(
        self, broker: RabbitmqBroker, queue_name: str, prefetch: int, timeout: int, *, runtime: Runtime
    ) -> None:
        self._consumers = runtime.consumers
        self._runtime = runtime
        self.logger = get_logger(__name__, type(self))
        self.broker = broker
        self.queue_name = queue_name
        self.timeout = timeout / 1000
        self.inbox: deque[MessageProxy] = deque()
        self.cancelled = False
        adapts = queue_name == q_name(queue_name) and not QUEUE_PREFETCH
        self.prefetch = Prefetch(prefetch, (runtime.process.threads if adapts else 0) or None)
        try:
            self.connection = pika.BlockingConnection(broker.parameters, delivery_reader(self._on_delivery))
        except AMQP_ERRORS as error:
            raise self._closed(error) from None
        try:
            self.channel = self.connection.channel()
            self.acks = AckTracker(self.connection, self.channel)
            self.channel.add_on_cancel_callback(self._on_cancel)
            self.depth = self.prefetch.depth
            self.tags = [self._subscribe(self.depth)]
        except AMQP_ERRORS as error:
            self._hang_up()
            raise self._closed(error) from None
        self._consumers.acks.add(self.acks)
        self._connected()

    def _connected(self) -> None:
        self._consumers.cut_off.pop(self.queue_name, None)
        if not self._consumers.cut_off:
            disconnected.over(address(self.broker.parameters))

    def _subscribe(self, depth: int) -> str:
        self.channel.basic_qos(prefetch_count=depth)
        return str(self.channel.basic_consume(self.queue_name, self._on_message))

    def _on_cancel(self, frame: Any) -> None:
        self.cancelled = True  # the queue was deleted

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._on_delivery(method.delivery_tag, body, redelivered=method.redelivered)

    def _on_delivery(self, tag: int, body: bytes, *, redelivered: bool) -> None:
        try:
            first, *more = envelope.parts(envelope.read(body))
        except DecodeError:
            self.logger.exception("A message can't be decoded; it goes to the dead letters.")
            self.acks.enter(tag, UNREADABLE)
            self.acks.release([], [tag])
            return
        if not self.inbox:
            self.connection.call_later(0, _nothing)  # so that waiting for events ends
        if more:
            self._take_many(tag, [first, *more], redelivered=redelivered)
            return
        delivery = Delivery(self.acks, tag, stamp.read(first.options), redelivered)
        self.acks.enter(tag, delivery)
        self.inbox.append(RabbitmqMessage(self.broker, first, delivery))

    def _take_many(self, tag: int, messages: list[Message[Any]], *, redelivered: bool) -> None:
        """Each is a message of its own from here on; to an actor that takes batches the first brings the others."""
        parts = [
            Delivery(self.acks, (tag, place), stamp.read(message.options), redelivered)
            for place, message in enumerate(messages)
        ]
        self.acks.enter_many(tag, parts)
        proxies = [RabbitmqMessage(self.broker, *part) for part in zip(messages, parts, strict=True)]
        if takes_batches(self.broker.actors.get(messages[0].actor_name)):
            parts[0].mates.extend(proxies[1:])
            del proxies[1:]
        self.inbox.extend(proxies)

    def __next__(self) -> MessageProxy | None:
        if not self.inbox:
            self._pump()
        return self.inbox.popleft() if self.inbox else None

    def _pump(self) -> None:
        try:
            now = time.monotonic()
            self.acks.flush(now)
            if self.prefetch.adapt(now, self.acks.settled):
                self._resubscribe()
            self.connection.process_data_events(self.timeout)
        except AMQP_ERRORS as error:
            self._lost(error)
        if self.channel.is_closed:
            # By RabbitMQ, which takes an acknowledgement that doesn't come for half an hour for a fault.
            self._lost(self.channel._closing_reason)  # noqa: SLF001 — pika tells it nowhere else
        if self.cancelled:
            self._lost(ConnectionError(f"the queue {self.queue_name!r} was deleted"))

    def _resubscribe(self) -> None:
        """A prefetch holds for new consumers only: to grow, add one; to shrink, begin with one and cancel the others.

        A cancellation gives back what was not dispatched yet, and each of those is claimed when it comes again.
        """
        more, self.depth = self.prefetch.depth - self.depth, self.prefetch.depth
        if more > 0:
            self.tags.append(self._subscribe(more))
            return
        old, self.tags = self.tags, [self._subscribe(self.depth)]
        for tag in old:
            self.channel.basic_cancel(tag)

    def _lost(self, error: BaseException) -> None:
        self.acks.discard()
        self.inbox.clear()
        self._consumers.acks.discard(self.acks)
        self._hang_up()
        raise self._closed(error) from None

    def _hang_up(self) -> None:
        """Of a channel that failed the connection is left; of one that is gone, nothing."""
        with suppress(*AMQP_ERRORS):
            self.connection.close()

    def _closed(self, error: BaseException) -> ConnectionClosed:
        if self.cancelled or getattr(error, "reply_code", None) == NOT_FOUND:
            self.broker.queues_pending.add(q_name(self.queue_name))
        why = f"{address(self.broker.parameters)}: {reason(error)}"
        self._consumers.cut_off[self.queue_name] = why
        return ConnectionClosed(why)

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message, on its own connection, unless that is deferred."""
        self._finish(message.delivery, failed=False)

    def nack(self, message: MessageProxy) -> None:
        """Have a message dead-lettered, likewise."""
        self._finish(message.delivery, failed=True)

    def _finish(self, delivery: Delivery, *, failed: bool) -> None:
        delivery.finish(failed=failed)
        if delivery.mates:  # it was not begun, so the next of its mates is
            following, *rest = delivery.mates
            delivery.mates, following.delivery.mates = [], rest
            self.inbox.append(following)
            with suppress(pika.exceptions.AMQPError):  # else its messages come again
                self.connection.add_callback_threadsafe(_nothing)

    def close(self) -> None:
        """Settle what is committed, waiting a moment for what is about to be, and close."""
        self._consumers.acks.discard(self.acks)
        try:
            if not self.acks.dead:
                self._drain(time.monotonic() + self._runtime.process.time_left())
            self.acks.discard()
            self.channel.close()
        except AMQP_ERRORS as error:
            self.acks.discard()
            raise ConnectionClosed(error) from None
        finally:
            self._hang_up()

    def _drain(self, deadline: float) -> None:
        quiet = threading.Event()
        self._runtime.journal.when_written(quiet.set)
        while not quiet.is_set() and time.monotonic() < deadline:
            self.connection.process_data_events(0.02)
        self.connection.process_data_events(0)
        self.acks.flush(time.monotonic(), all_of_it=True)


def _nothing() -> None:
    pass
