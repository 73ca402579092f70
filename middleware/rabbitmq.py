"""The drop-in for Dramatiq's RabbitMQ broker: acknowledgements after the commit, in batches, on the right connection;
delays that are rows in the outbox; a prefetch that follows what the actors take.
"""

import logging
import math
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Literal

import pika
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockBroker
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.logging import get_logger
from dramatiq.message import Message
from dramatiq.middleware import Middleware
from dramatiq.worker import QUEUE_PREFETCH

from callboard.middleware import envelope, stamp
from callboard.middleware.batch import takes_batches
from callboard.middleware.book import UNREADABLE, Book, Tag
from callboard.middleware.complaint import disconnected, reason
from callboard.middleware.deliveries import reading
from callboard.middleware.link import RabbitmqLink, where
from callboard.middleware.recorder import Recorder
from callboard.middleware.signals import Signals
from callboard.middleware.tracking import track
from callboard.sql.pool import database_address

log = logging.getLogger("callboard.rabbitmq")

#: Seconds of work that the prefetch covers, the window and the commit of a flush included; and its upper limit.
COVER = 0.08
DEEPEST = 500
#: Seconds between two looks at the prefetch, and to the first, since a worker that starts is to be fast at once; and
#: looks in a row after which it shrinks.
LOOK = 0.10
FIRST_LOOK = 0.02
SLACK = 10
#: AMQP's reply code for a queue that does not exist.
NOT_FOUND = 404

AMQP_ERRORS = (AssertionError, pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError)


class RabbitmqBroker(StockBroker):
    """Dramatiq's RabbitmqBroker, tracked. All of its parameters hold; `database_url` defaults to ``DATABASE_URL``.

    `queue_type="quorum"` declares quorum queues, without a delivery limit: crashes are counted in the database, and
    RabbitMQ 4's default of 20 counts prefetched messages that never started.
    """

    def __init__(
        self, *, url: str | list[str] | None = None, middleware: list[Middleware] | None = None,
        database_url: str | None = None, queue_type: Literal["classic", "quorum"] = "classic", **kwargs: Any,
    ) -> None:  # fmt: skip
        self._signals = Signals(self, logging.getLogger("dramatiq.broker.RabbitmqBroker"))
        super().__init__(url=url, middleware=middleware, **kwargs)
        self.queue_type = queue_type
        self.books: set[Book] = set()
        self.cut_off: dict[str, str] = {}  # queue -> why nothing comes from it
        self.recorder = Recorder(
            database_address(database_url), lambda: RabbitmqLink(self, carries=True), remote=True, defers=True,
            open_deliveries=self._open_deliveries, prefetched=self._prefetched, cut_off=self._why_cut_off,
        )  # fmt: skip
        track(self, self.recorder)

    @property
    def consumer_class(self) -> type[Consumer]:
        """What `consume` makes."""
        return RabbitmqConsumer

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """See Signals."""
        self._signals.before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """See Signals."""
        self._signals.after(signal, *args, **kwargs)

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Record a message, then publish it; `delay` in milliseconds. Raises NotStored when it can't be recorded."""
        return self.recorder.send(self, message, delay)

    def _open_deliveries(self) -> int:
        return sum(book.held for book in list(self.books))

    def _prefetched(self) -> list[tuple[int, int]]:
        marks = (
            stamp.read(m.options) for book in list(self.books) for m in book.messages() if m is not UNREADABLE
        )
        return [(mark.job, mark.item) for mark in marks if mark]

    def _why_cut_off(self) -> str | None:
        return next(iter(list(self.cut_off.values())), None)

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        if self.queue_type == "quorum":
            arguments |= {"x-queue-type": "quorum", "x-delivery-limit": -1}
        return arguments


class RabbitmqMessage(MessageProxy):
    """A delivered message, or one of those that a delivery carries, bound to the book of its connection.

    `mates`: those that came with it and are to be begun with it, or after it when it is not.
    """

    def __init__(
        self, broker: "RabbitmqBroker", message: Message[Any], book: Book, tag: Tag, *, redelivered: bool
    ) -> None:
        super().__init__(message)
        self.broker = broker
        self.mates: list[RabbitmqMessage] = []
        self.book = book
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
                self.book.release([], [self.tag])
            else:
                self.book.release([self.tag], [])


class RabbitmqConsumer(Consumer):
    """Consumes one queue on a connection of its own."""

    def __init__(self, broker: RabbitmqBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        self.logger = get_logger(__name__, type(self))
        self.broker = broker
        self.queue_name = queue_name
        self.timeout = timeout / 1000
        self.inbox: deque[RabbitmqMessage] = deque()
        self.cancelled = False
        adapts = queue_name == q_name(queue_name) and not QUEUE_PREFETCH
        worker = broker.recorder.worker
        self.prefetch = Prefetch(prefetch, worker.threads if worker and adapts else None)
        try:
            self.connection = pika.BlockingConnection(broker.parameters, reading(self._on_delivery))
        except AMQP_ERRORS as error:
            raise self._closed(error) from None
        try:
            self.channel = self.connection.channel()
            self.book = Book(self.connection, self.channel)
            self.channel.add_on_cancel_callback(self._on_cancel)
            self.depth = self.prefetch.depth
            self.tags = [self._subscribe(self.depth)]
        except AMQP_ERRORS as error:
            self._hang_up()
            raise self._closed(error) from None
        broker.books.add(self.book)
        self._connected()

    def _connected(self) -> None:
        self.broker.cut_off.pop(self.queue_name, None)
        if not self.broker.cut_off and (seconds := disconnected.ends()) is not None:
            log.warning("messages come from %s again, after %.1f s", where(self.broker.parameters), seconds)

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
            self.book.enter(tag, UNREADABLE)
            self.book.release([], [tag])
            return
        if not self.inbox:
            self.connection.call_later(0, _nothing)  # so that waiting for events ends
        if more:
            self._take_many(tag, [first, *more], redelivered=redelivered)
            return
        proxy = RabbitmqMessage(self.broker, first, self.book, tag, redelivered=redelivered)
        self.book.enter(tag, proxy)
        self.inbox.append(proxy)

    def _take_many(self, tag: int, messages: list[Message[Any]], *, redelivered: bool) -> None:
        """Each is a message of its own from here on; to an actor that takes batches the first brings the others."""
        proxies = [
            RabbitmqMessage(self.broker, message, self.book, (tag, place), redelivered=redelivered)
            for place, message in enumerate(messages)
        ]
        self.book.enter_many(tag, proxies)
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
            self.book.flush(now)
            if self.prefetch.due(now, self.book.settled):
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
        self.book.discard()
        self.inbox.clear()
        self.broker.books.discard(self.book)
        self._hang_up()
        raise self._closed(error) from None

    def _hang_up(self) -> None:
        """Of a channel that failed the connection is left; of one that is gone, nothing."""
        with suppress(*AMQP_ERRORS):
            self.connection.close()

    def _closed(self, error: BaseException) -> ConnectionClosed:
        if self.cancelled or getattr(error, "reply_code", None) == NOT_FOUND:
            self.broker.queues_pending.add(q_name(self.queue_name))
        why = f"{where(self.broker.parameters)}: {reason(error)}"
        self.broker.cut_off[self.queue_name] = why
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
        self.broker.books.discard(self.book)
        try:
            if not self.book.dead:
                self._drain(time.monotonic() + self.broker.recorder.time_left())
            self.book.discard()
            self.channel.close()
        except AMQP_ERRORS as error:
            self.book.discard()
            raise ConnectionClosed(error) from None
        finally:
            self._hang_up()

    def _drain(self, deadline: float) -> None:
        quiet = threading.Event()
        self.broker.recorder.journal.when_written(quiet.set)
        while not quiet.is_set() and time.monotonic() < deadline:
            self.connection.process_data_events(0.02)
        self.connection.process_data_events(0)
        self.book.flush(time.monotonic(), all_of_it=True)


def _nothing() -> None:
    pass


class Prefetch:
    """How many messages to hold: enough to cover a flush for fast actors, about the number of threads for slow ones.

    A deep prefetch would hoard slow items that idle workers can't get; a shallow one starves a fast worker.
    """

    def __init__(self, depth: int, threads: int | None) -> None:
        self.depth = depth
        self._threads = threads
        self._looked = time.monotonic()
        self._pause = FIRST_LOOK
        self._settled = 0
        self._shrinking = 0

    def due(self, now: float, settled: int) -> bool:
        """Look at what was settled since the last look; True when `depth` changed."""
        if self._threads is None or now - self._looked < self._pause:
            return False
        if not settled:
            self._looked = now
            return False
        self._pause = min(self._pause * 2, LOOK)
        rate = (settled - self._settled) / (now - self._looked)
        self._looked, self._settled = now, settled
        wanted = wanted_prefetch(self._threads, rate)
        self._shrinking = self._shrinking + 1 if wanted * 2 < self.depth else 0
        if wanted * 2 > self.depth * 3 or self._shrinking >= SLACK:
            self.depth, self._shrinking = wanted, 0
            return True
        return False


def wanted_prefetch(threads: int, rate: float) -> int:
    """The prefetch for a process of so many threads that settles `rate` messages a second."""
    return min(max(threads + math.ceil(threads / 4) + math.ceil(rate * COVER), 2), max(DEEPEST, threads))
