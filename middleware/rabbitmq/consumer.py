"""Consumes one queue on a connection of its own; acknowledges when the journal has committed."""

import logging
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
from callboard.middleware.process.outage import disconnected, reason
from callboard.middleware.rabbitmq.acks import UNREADABLE, AckTracker, Tag
from callboard.middleware.rabbitmq.confirms import address
from callboard.middleware.rabbitmq.frames import delivery_reader
from callboard.middleware.rabbitmq.prefetch import Prefetch
from callboard.middleware.runtime import Runtime

#: AMQP's reply code for a queue that does not exist.
NOT_FOUND = 404
AMQP_ERRORS = (AssertionError, pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError)
log = logging.getLogger("callboard.rabbitmq")


class RabbitmqMessage(MessageProxy):
    """A delivered message, or one of those that a delivery carries, bound to the book of its connection.

    `mates`: those that came with it and are to be begun with it, or after it when it is not.
    """

    def __init__(
        self, broker: RabbitmqBroker, message: Message[Any], acks: AckTracker, tag: Tag, *, redelivered: bool
    ) -> None:
        super().__init__(message)
        self.broker = broker
        self.mates: list[RabbitmqMessage] = []
        self.acks = acks
        self.tag = tag
        self.redelivered = redelivered
        self.stale = False
        self.deferred = False  # the journal settles it, after its commit
        self.aside = False  # a thread of its own does, or leaves it to the journal

    @property
    def carried(self) -> bool:
        """Whether others came in the same delivery: it is acknowledged, whatever becomes of each."""
        return isinstance(self.tag, tuple)

    def settle(self) -> None:
        """Acknowledge it, or have it dead-lettered, unless the journal does."""
        if not self.deferred:
            if self.failed and isinstance(self.tag, int):
                self.acks.release([], [self.tag])
            else:
                self.acks.release([self.tag], [])


class Consumers:
    """What the consumers of one broker share: their open deliveries, and the queues that nothing comes from."""

    def __init__(self) -> None:
        self.trackers: set[AckTracker] = set()
        self.cut_off: dict[str, str] = {}  # queue -> why nothing comes from it

    def open_deliveries(self) -> int:
        """How many messages were delivered and are not settled."""
        return sum(acks.held for acks in list(self.trackers))

    def prefetched(self) -> list[tuple[int, int]]:
        """(job, item) of each of them."""
        marks = (
            stamp.read(m.options)
            for acks in list(self.trackers)
            for m in acks.messages()
            if m is not UNREADABLE
        )
        return [(mark.job, mark.item) for mark in marks if mark]

    def why_cut_off(self) -> str | None:
        """Why nothing comes from a queue, if nothing does."""
        return next(iter(list(self.cut_off.values())), None)


class RabbitmqConsumer(Consumer):
    """Consumes one queue on a connection of its own."""

    def __init__(
        self, broker: RabbitmqBroker, queue_name: str, prefetch: int, timeout: int, *,
        consumers: Consumers, runtime: Runtime,
    ) -> None:  # fmt: skip
        self._consumers = consumers
        self._runtime = runtime
        self.logger = get_logger(__name__, type(self))
        self.broker = broker
        self.queue_name = queue_name
        self.timeout = timeout / 1000
        self.inbox: deque[RabbitmqMessage] = deque()
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
        consumers.trackers.add(self.acks)
        self._connected()

    def _connected(self) -> None:
        self._consumers.cut_off.pop(self.queue_name, None)
        if not self._consumers.cut_off and (seconds := disconnected.end()) is not None:
            log.warning("messages come from %s again, after %.1f s", address(self.broker.parameters), seconds)

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
        proxy = RabbitmqMessage(self.broker, first, self.acks, tag, redelivered=redelivered)
        self.acks.enter(tag, proxy)
        self.inbox.append(proxy)

    def _take_many(self, tag: int, messages: list[Message[Any]], *, redelivered: bool) -> None:
        """Each is a message of its own from here on; to an actor that takes batches the first brings the others."""
        proxies = [
            RabbitmqMessage(self.broker, message, self.acks, (tag, place), redelivered=redelivered)
            for place, message in enumerate(messages)
        ]
        self.acks.enter_many(tag, proxies)
        if takes_batches(self.broker.actors.get(messages[0].actor_name)):
            proxies[0].mates = proxies[1:]
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
        self._consumers.trackers.discard(self.acks)
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
        """Acknowledge a message, on its own connection, unless the journal does."""
        message.settle()
        self._pass_on(message)

    def nack(self, message: MessageProxy) -> None:
        """Have a message dead-lettered, likewise."""
        if not message.aside:
            message.settle()
        self._pass_on(message)

    def _pass_on(self, message: Any) -> None:
        """It was not begun, and so did not take its mates along: the next of them does."""
        if message.mates:
            following, *rest = message.mates
            message.mates, following.mates = [], rest
            self.inbox.append(following)
            with suppress(pika.exceptions.AMQPError):  # else its messages come again
                self.connection.add_callback_threadsafe(_nothing)

    def close(self) -> None:
        """Settle what is committed, waiting a moment for what is about to be, and close."""
        self._consumers.trackers.discard(self.acks)
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
