"""Consumes one RabbitMQ queue, and acknowledges a message when its outcome is committed."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import pika
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.logging import get_logger
from dramatiq.message import Message
from dramatiq.worker import QUEUE_PREFETCH
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from callboard.middleware.attempts.batch import takes_batches
from callboard.middleware.message import envelope, stamp
from callboard.middleware.message.delivery import Delivery, Tag, release
from callboard.middleware.process.outage import disconnected, reason
from callboard.middleware.rabbitmq.acks import AckTracker
from callboard.middleware.rabbitmq.confirms import address
from callboard.middleware.rabbitmq.frames import delivery_reader
from callboard.middleware.rabbitmq.prefetch import LOOK_SECONDS, Prefetch, Standstill
from callboard.middleware.runtime import Runtime
from callboard.middleware.submission.enqueue import delayed_item
from callboard.sql.errors import DATA_ERRORS
from callboard.sql.rows import Outgoing

#: AMQP's reply code for a queue that does not exist.
NOT_FOUND = 404
AMQP_ERRORS = (
    AssertionError, pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError, AMQPConnectorException
)  # fmt: skip


class RabbitmqMessage(MessageProxy):
    """A delivered message, or one item of a delivered chunk. `batch` uses its attribute `broker`."""

    def __init__(self, broker: RabbitmqBroker, message: Message[Any], delivery: Delivery) -> None:
        super().__init__(message)
        # Dramatiq and its hooks read the fields about twenty times; without this, each read would call `__getattr__`.
        self.__dict__.update(vars(message))
        self.broker = broker
        self.delivery = delivery


class RabbitmqConsumer(Consumer):
    """Consumes one queue on its own connection. Only `ack` and `nack` may be called from other threads than the
    consumer's.

    Raises ConnectionClosed when the connection can't be opened, or is lost.
    """

    def __init__(
        self, broker: RabbitmqBroker, queue_name: str, prefetch: int, timeout: int, *, runtime: Runtime
    ) -> None:
        self._consumers = runtime.consumers
        self._runtime = runtime
        self.logger = get_logger(__name__, type(self))
        self.broker = broker
        self.queue_name = queue_name
        self._timeout = timeout / 1000
        self._inbox: deque[MessageProxy] = deque()
        self._cancelled = False
        adapts = queue_name == q_name(queue_name) and not QUEUE_PREFETCH
        self._prefetch = Prefetch(prefetch, (runtime.process.threads if adapts else 0) or None)
        self._standstill = Standstill()
        try:
            self.connection = pika.BlockingConnection(broker.parameters, delivery_reader(self._on_delivery))
        except AMQP_ERRORS as error:
            raise self._closed(error) from None
        try:
            self.channel = self.connection.channel()
            self._acks = AckTracker(self.connection, self.channel)
            self.channel.add_on_cancel_callback(self._on_cancel)
            self._subscriptions: list[str] = []
            self._depth = 0  # the prefetch of all subscriptions together
            self._earlier = 0  # the last tag before the last standstill
            self._waits = False  # it subscribes again only when a thread is free
            self._subscribe(self._prefetch.depth)
        except AMQP_ERRORS as error:
            self._close_connection()
            raise self._closed(error) from None
        self._consumers.acks.add(self._acks)
        self._consumers.cut_off.pop(self.queue_name, None)
        if not self._consumers.cut_off:
            disconnected.over(address(self.broker.parameters))

    def _subscribe(self, depth: int) -> None:
        self.channel.basic_qos(prefetch_count=depth)
        self._subscriptions.append(str(self.channel.basic_consume(self.queue_name, self._on_message)))
        self._depth += depth
        self._waits = False

    def _unsubscribe(self) -> None:
        """End all subscriptions. Messages that they had not dispatched return to the queue, and are claimed when they
        are redelivered.
        """
        old, self._subscriptions, self._depth = self._subscriptions, [], 0
        for tag in old:
            self.channel.basic_cancel(tag)

    def _on_cancel(self, frame: Any) -> None:
        self._cancelled = True  # the queue was deleted

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        was_dead = any("x-death" in name for name in properties.headers or ())
        self._on_delivery(method.delivery_tag, body, redelivered=method.redelivered, was_dead=was_dead)

    def _on_delivery(self, tag: int, body: bytes, *, redelivered: bool, was_dead: bool) -> None:
        try:
            messages = envelope.parts(envelope.read(body))
        except DecodeError:
            self.logger.exception("A message can't be decoded; it goes to the dead letters.")
            self._acks.enter(tag, [Delivery(self._acks, tag, None)])
            self._acks.release([], [tag])
            return
        if not self._inbox:
            self.connection.call_later(0, _nothing)  # ends the wait for events
        tags: list[Tag] = [tag] if len(messages) == 1 else [(tag, place) for place in range(len(messages))]
        proxies = [
            RabbitmqMessage(
                self.broker,
                envelope.of_queue(message, self.queue_name),
                Delivery(self._acks, own, stamp.read(message.options), redelivered, was_dead),
            )
            for message, own in zip(messages, tags, strict=True)
        ]
        self._acks.enter(tag, [proxy.delivery for proxy in proxies])
        if len(proxies) > 1 and takes_batches(self.broker.actors.get(messages[0].actor_name)):
            proxies[0].delivery.mates.extend(proxies[1:])
            del proxies[1:]
        if self.queue_name == q_name(self.queue_name):
            self._acks.wait(proxy.delivery for proxy in proxies)
        elif self._keep_delayed(proxies[0]):
            return
        self._inbox.extend(proxies)

    def _keep_delayed(self, message: RabbitmqMessage) -> bool:
        """Store a delayed message of a producer without Callboard as a row, then acknowledge it; return False for any
        other message.

        Dramatiq would keep it in memory until it is due, then move it to its queue: one message at a time, with a
        commit each.
        """
        eta = message.options.get("eta")
        if message.delivery.stamp is not None or not isinstance(eta, int | float):
            return False
        item, again = delayed_item(message, eta), message.delivery.came_before
        stored = self._runtime.journal.send(item, redelivered=again)
        stored.add_done_callback(partial(self._end_delayed, message))
        return True

    def _end_delayed(self, message: RabbitmqMessage, stored: Future[Outgoing]) -> None:
        error = stored.exception()
        if error is None:
            release([(message.delivery, False)])
        elif isinstance(error, DATA_ERRORS):
            self.logger.error("A delayed message can't be recorded; it goes to the dead letters: %s", error)
            release([(message.delivery, True)])
        else:  # the database does not answer: Dramatiq keeps the message until it is due
            self._inbox.append(message)

    def __next__(self) -> MessageProxy | None:
        if not self._inbox:
            self._pump()
        return self._inbox.popleft() if self._inbox else None

    def _pump(self) -> None:
        try:
            now = time.monotonic()
            self._acks.flush(now)
            acks, in_flight = self._acks, self._runtime.in_flight
            commit_seconds = self._runtime.journal.commit_seconds
            self._prefetch.adapt(now, acks.finished, acks.finished_items, in_flight.held_up(acks), commit_seconds)
            if self._standstill.look(now, in_flight.admitted) and not in_flight.has_free_thread():
                self._give_back()
            self._adapt_subscriptions()
            looks = acks.held or self._depth < self._prefetch.depth
            self.connection.process_data_events(LOOK_SECONDS if looks else self._timeout)
        except AMQP_ERRORS as error:
            self._lost(error)
        if self.channel.is_closed:
            # RabbitMQ closes the channel when a delivery is not acknowledged within its timeout, 30 minutes by default.
            self._lost(self.channel._closing_reason)  # noqa: SLF001 — pika has no public attribute for it
        if self._cancelled:
            self._lost(ConnectionError(f"the queue {self.queue_name!r} was deleted"))

    def _give_back(self) -> None:
        """Give back waiting messages, because all threads are busy with slow items. Each item is published again by
        itself: those beyond the prefetch for slow actors, or all of them when another consumer may be idle. No message
        is taken until a thread is free.
        """
        self._prefetch.fall_back()
        waiting = self._acks.returnable()
        busy = self._runtime.in_flight.busy_threads(self._acks)
        excess = waiting[max(self._prefetch.depth - busy, 0) :]
        # If other queues keep the threads busy, this queue's messages keep their place before the next messages of
        # those queues.
        if waiting and not excess and busy >= self._runtime.process.threads and self._is_awaited():
            excess = waiting
        if excess:
            self._runtime.in_flight.give_back(self._acks.take(excess))
        if excess or self._depth > self._prefetch.depth:
            self._unsubscribe()
            self._earlier, self._waits = self._acks.newest, True

    def _is_awaited(self) -> bool:
        """Return whether the queue is empty and has other consumers; those that gave back messages do not count."""
        found = self.channel.queue_declare(self.queue_name, passive=True).method
        return bool(found.message_count == 0 and found.consumer_count > len(self._subscriptions))

    def _adapt_subscriptions(self) -> None:
        """Adapt the subscriptions to the prefetch, which RabbitMQ applies to new subscriptions only. To grow, add a
        subscription; to shrink, replace all by one. Messages from before a standstill count here, although RabbitMQ
        does not count them for the current subscriptions.
        """
        if self._depth > self._prefetch.depth:
            self._unsubscribe()
        more, taken = self._prefetch.depth - self._depth, self._acks.open_deliveries(self._earlier)
        if taken < self._acks.open_deliveries():
            held = self._runtime.in_flight.busy_threads() + len(self._acks.waiting)
            more = min(more, self._prefetch.depth - held - max(self._depth - taken, 0))
            if self._subscriptions and more < self._runtime.process.threads // 4:
                return
        if more > 0 and (not self._waits or not self._acks.held or self._runtime.in_flight.has_free_thread()):
            self._subscribe(more)

    def _lost(self, error: BaseException) -> None:
        self._acks.discard()
        self._inbox.clear()
        self._consumers.acks.discard(self._acks)
        self._close_connection()
        raise self._closed(error) from None

    def _close_connection(self) -> None:
        """Close the connection, if it is still open: a channel that failed leaves it open."""
        with suppress(*AMQP_ERRORS):
            self.connection.close()

    def _closed(self, error: BaseException) -> ConnectionClosed:
        if self._cancelled or getattr(error, "reply_code", None) == NOT_FOUND:
            self.broker.queues_pending.add(q_name(self.queue_name))
        why = f"{address(self.broker.parameters)}: {reason(error)}"
        self._consumers.cut_off[self.queue_name] = why
        return ConnectionClosed(why)

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message, on its own connection, unless that is deferred."""
        self._finish(message.delivery, failed=False)

    def nack(self, message: MessageProxy) -> None:
        """Dead-letter a message, on its own connection, unless that is deferred."""
        self._finish(message.delivery, failed=True)

    def _finish(self, delivery: Delivery, *, failed: bool) -> None:
        delivery.finish(failed=failed)
        if delivery.mates:  # they did not begin with this one, so the next of them begins
            following, *rest = delivery.mates
            delivery.mates, following.delivery.mates = [], rest
            self._inbox.append(following)
            with suppress(pika.exceptions.AMQPError):
                self.connection.add_callback_threadsafe(_nothing)  # ends the wait for events

    def close(self) -> None:
        """Wait a moment until the outcomes so far are committed, acknowledge them, and close."""
        self._consumers.acks.discard(self._acks)
        try:
            if not self._acks.dead:
                self._drain(time.monotonic() + self._runtime.process.time_left())
            self._acks.discard()
            self.channel.close()
        except AMQP_ERRORS as error:
            self._acks.discard()
            raise ConnectionClosed(error) from None
        finally:
            self._close_connection()

    def _drain(self, deadline: float) -> None:
        written = threading.Event()
        self._runtime.when_written(written.set)
        while not written.is_set() and time.monotonic() < deadline:
            self.connection.process_data_events(0.02)
        self.connection.process_data_events(0)
        self._acks.flush(time.monotonic(), all_of_it=True)


def _nothing() -> None:
    pass
