"""Consumes from any broker but RabbitMQ, and acknowledges a message when its outcome is committed."""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any

from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, DecodeError

from callboard.middleware.message import envelope, stamp
from callboard.middleware.message.delivery import Delivery, Tag
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import RETRY_SECONDS
from callboard.middleware.process.side_thread import SideThread
from callboard.middleware.runtime import Runtime

#: The `maintenance_chance` with which each call to Redis does the maintenance of its queue.
ALWAYS = 1_000_000
_maintaining = threading.Lock()

log = logging.getLogger("callboard.tracking")
_log_outage = OutageLog(
    log, "messages can't be acknowledged, trying again: %s", "messages can be acknowledged again, after %.1f s"
)


class DeferringConsumer(Consumer):
    """Wraps a broker's own consumer. Acknowledges in a side thread, because that may block or lose the connection."""

    def __init__(self, consumer: Consumer, queue_name: str, runtime: Runtime) -> None:
        self._consumer = consumer
        self._queue = queue_name
        self._runtime = runtime
        self._consumers = runtime.consumers
        self._open: dict[Tag, MessageProxy] = {}
        self._tags = count()
        self._closed = False
        self._side_thread = SideThread("acks")
        self._broker: Any = getattr(consumer, "broker", object())
        #: Seconds without a heartbeat after which Redis takes a worker for dead; None for other brokers.
        self._silence: float | None = None
        if hasattr(self._broker, "maintenance_chance"):
            self._silence = self._broker.heartbeat_timeout / 1000
        self._maintained_at = time.monotonic()
        self._consumers.acks.add(self)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the broker's own consumer, which an app may use."""
        return getattr(self._consumer, name)

    def __next__(self) -> MessageProxy | None:
        message = None
        try:
            message = next(self._consumer)
            if message is None:
                self._maintain()
                return None
            checked = envelope.checked(message._message)  # noqa: SLF001 — an attribute of the broker's own class
            message._message = envelope.of_queue(checked, self._queue)  # noqa: SLF001
        except DecodeError:
            if message is None:  # a new consumer would lose the messages that were fetched with it
                log.exception("a message can't be decoded; its broker keeps it")
            else:
                log.exception("a message can't be read; it goes to the dead letters")
                self._side_thread.run(partial(self._reject, message))
            return None
        tag = next(self._tags)
        message.delivery = Delivery(  # type: ignore[attr-defined]
            self, tag, stamp.read(message.options), self._may_be_redelivered(message)
        )
        self._open[tag] = message
        return message

    def _reject(self, message: MessageProxy) -> None:
        try:
            while not _succeeds(partial(self._consumer.nack, message)):
                time.sleep(RETRY_SECONDS)
        except Exception:
            log.exception("a message that can't be read can't be rejected; its broker keeps it")

    def _may_be_redelivered(self, message: MessageProxy) -> bool:
        """Return whether a message may have been delivered before. Some brokers set `redelivered`. The Redis broker
        does not: it requeues the messages of a worker without a heartbeat, so only a message older than half of that
        time may be redelivered.
        """
        if getattr(message, "redelivered", False):
            return True
        return self._silence is not None and time.time() - message.message_timestamp / 1000 > self._silence / 2

    def _maintain(self) -> None:
        """Make Redis requeue the messages of dead workers. Raises ConnectionClosed.

        Dramatiq does so at random, in one of a thousand calls: with few calls these messages would wait for minutes.
        """
        if self._silence is None or time.monotonic() - self._maintained_at < self._silence / 2:
            return
        with _maintaining:
            chance, self._broker.maintenance_chance = self._broker.maintenance_chance, ALWAYS
            try:
                self._broker.do_qsize(self._queue)
            except Exception as error:
                raise ConnectionClosed(error) from error
            finally:
                self._broker.maintenance_chance = chance
        self._maintained_at = time.monotonic()

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message, unless that is deferred."""
        message.delivery.finish(failed=False)

    def nack(self, message: MessageProxy) -> None:
        """Move a message to the dead letters, unless that is deferred."""
        message.delivery.finish(failed=True)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """See `Consumer`."""
        self._consumer.requeue(messages)

    def close(self) -> None:
        """Close the consumer. A process that stops first waits until the outcomes so far are committed and
        acknowledged, for `time_left()` at most. After a lost connection the acknowledgements go on.
        """
        if self._runtime.process.stopping:
            acknowledged = threading.Event()
            self._runtime.when_written(partial(self._side_thread.run, acknowledged.set))
            acknowledged.wait(self._runtime.process.time_left())
        self._closed = True
        self._forget_if_done()
        self._consumer.close()

    # The deliveries that are not acknowledged ------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """How many messages are not acknowledged."""
        return len(self._open)

    def deliveries(self) -> list[Delivery]:
        """The deliveries of these messages."""
        return [message.delivery for message in list(self._open.values())]

    def release(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """Acknowledge and reject these messages; see `Acks`."""
        self._side_thread.run(partial(self._finish_all, acks, nacks))

    def _finish_all(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        for finish, tags in ((self._consumer.ack, acks), (self._consumer.nack, nacks)):
            for message in [self._open.pop(tag) for tag in tags if tag in self._open]:
                while not _succeeds(partial(finish, message)):
                    time.sleep(RETRY_SECONDS)
        self._forget_if_done()

    def _forget_if_done(self) -> None:
        if self._closed and not self._open:
            self._consumers.acks.discard(self)


def _succeeds(finish: partial[None]) -> bool:
    try:
        finish()
    except BrokerConnectionError as error:
        _log_outage(error)
        return False
    _log_outage.over()
    return True
