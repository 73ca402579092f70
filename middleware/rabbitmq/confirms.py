"""Publishes to RabbitMQ with asynchronous confirms (pika's SelectConnection)."""

import logging
import random
from collections.abc import Sequence
from typing import Any

import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name, xq_name
from dramatiq.errors import BrokerConnectionError
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from callboard.middleware.message import envelope
from callboard.middleware.process.outage import reason
from callboard.middleware.publish.transport import Unreachable
from callboard.sql.rows import Outgoing

log = logging.getLogger("callboard.publisher")

#: Seconds to wait for a connection, or for the confirms of a batch, before the connection is given up.
CONFIRM_SECONDS = 20.0
#: Seconds for which a batch waits after RabbitMQ has blocked the connection: shorter than a claim holds.
BLOCKED_SECONDS = 5.0
#: Messages that are written before the connection is served.
SERVE_EVERY_MESSAGES = 100


class ConfirmingPublisher:
    """Publishes a batch, then waits for all of its confirms at once. See `publish.transport.Transport`."""

    takes_chunks = True

    def __init__(self, broker: RabbitmqBroker) -> None:
        self._broker = broker
        self.in_order = not broker.max_priority
        self.trouble: str | None = None
        self._connection: SelectConnection | None = None
        self._channel: Channel | None = None
        self._depth_channel: Channel | None = None
        self._address = ""
        self._close_reason = ""  # why the connection was closed
        self._depth_error = ""  # why the channel that asks for depths was closed
        self._blocked = ""  # why RabbitMQ blocks the connection; empty: it doesn't
        self._first_tag = self._next_tag = 1  # delivery tags: of the batch's first message, of the next one
        self._lowest_tag = 1  # the lowest that no multiple confirm has covered
        self._unconfirmed: set[int] = set()
        self._nacked: set[int] = set()
        self._returned: list[tuple[str, str]] = []  # (message id, queue)

    # Publishing ------------------------------------------------------------------------------------------------------

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """See Transport. A queue that does not exist is declared, and its messages are published once more."""
        try:
            confirmed = self._publish(batch)
        except Unreachable as error:
            self.trouble = str(error)
            raise
        self.trouble = None
        return confirmed

    def _publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        confirmed = self._send(batch)
        if not self._returned:
            return confirmed
        try:
            for queue in {q_name(queue) for _, queue in self._returned}:
                self._declare(queue)
        except BrokerConnectionError as error:
            raise Unreachable(f"a queue can't be declared: {reason(error)}", confirmed) from error
        again = [n for n, done in enumerate(confirmed) if not done]
        try:
            answers = self._send([batch[n] for n in again])
        except Unreachable as error:
            raise Unreachable(str(error), _merged(confirmed, again, error.confirmed)) from error
        return _merged(confirmed, again, answers)

    def _send(self, batch: Sequence[Outgoing]) -> list[bool]:
        channel = self._open()
        self._check_blocked()  # RabbitMQ would read each attempt after the alarm, and deliver every copy
        self._first_tag, self._returned, self._nacked = self._next_tag, [], set()
        self._unconfirmed = set()
        for n, out in enumerate(batch, 1):
            self._unconfirmed.add(self._next_tag)
            self._next_tag += 1
            channel.basic_publish(
                "", _queue(out), envelope.body(out), envelope.properties(out), mandatory=True
            )
            if n % SERVE_EVERY_MESSAGES == 0:
                self._run_loop(0)
            if self._channel is None:
                break
        self._await_confirms()
        confirmed = self._confirmed(batch)
        if self._blocked and self._unconfirmed:
            raise Unreachable(self._blocked, confirmed)
        if self._unconfirmed or self._channel is None:
            why = self._close_reason or f"{self._address} confirmed nothing within {CONFIRM_SECONDS:.0f} s"
            self.close()
            raise Unreachable(why, confirmed)
        return confirmed

    def _await_confirms(self) -> None:
        if self._awaits_confirms():
            self._run_loop(BLOCKED_SECONDS if self._blocked else CONFIRM_SECONDS)
        if self._blocked and self._awaits_confirms():
            self._run_loop(BLOCKED_SECONDS)  # it was blocked meanwhile, which ended the first wait

    def _awaits_confirms(self) -> bool:
        return bool(self._unconfirmed) and self._channel is not None

    def _confirmed(self, batch: Sequence[Outgoing]) -> list[bool]:
        sent = self._next_tag - self._first_tag
        missed = self._unconfirmed | self._nacked
        returned = {message_id for message_id, _ in self._returned}
        return [
            n < sent and self._first_tag + n not in missed and envelope.message_id(out) not in returned
            for n, out in enumerate(batch)
        ]

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        first = self._lowest_tag if method.multiple else method.delivery_tag
        tags = range(first, method.delivery_tag + 1)
        if method.multiple:
            self._lowest_tag = method.delivery_tag + 1
        self._unconfirmed.difference_update(tags)
        if isinstance(method, pika.spec.Basic.Nack):
            self._nacked.update(tags)
        if not self._unconfirmed:
            self._stop_loop()

    def _on_return(
        self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        self._returned.append((properties.message_id or "", method.routing_key))

    def _declare(self, queue: str) -> None:
        """Declare a missing queue, with its delay and dead-letter queues, as the broker would.

        The broker's `declare_queue` would make a worker consume the queue, even one that has none of its actors.
        """
        self._broker.queues_pending.add(queue)
        self._broker._ensure_queue(queue)  # noqa: SLF001

    # Queue depth -----------------------------------------------------------------------------------------------------

    def depth(self, queue: str) -> int:
        """See Transport. Returns 0 for a queue that does not exist yet."""
        try:
            found = self._depth(queue)
        except Unreachable as error:
            self.trouble = str(error)
            raise
        self.trouble = None
        return found

    def _depth(self, queue: str) -> int:
        self._open()
        self._check_blocked()  # RabbitMQ would not read the question
        answer: list[int] = []

        def on_declared(frame: Any) -> None:
            answer.append(frame.method.message_count)
            self._stop_loop()

        self._depth_error = ""
        if self._depth_channel is None and self._connection is not None:
            self._open_depth_channel(self._connection)
        if self._depth_channel is not None:
            self._depth_channel.queue_declare(queue, passive=True, callback=on_declared)
            self._run_loop(CONFIRM_SECONDS)
        if self._channel is None:
            raise Unreachable(self._close_reason)
        if not answer and not self._depth_error:
            self.close()  # a late answer would be taken for the confirm of the next batch
            raise Unreachable(
                f"{self._address} tells nothing of the queue {queue!r} within {CONFIRM_SECONDS:.0f} s"
            )
        if not answer and "NOT_FOUND - no queue" not in self._depth_error:
            raise Unreachable(self._depth_error)
        return answer[0] if answer else 0

    def _open_depth_channel(self, connection: SelectConnection) -> None:
        """Open the channel that asks for depths; RabbitMQ closes it when a queue is missing, or its node is down."""

        def on_open(channel: Channel) -> None:
            self._depth_channel = channel
            self._stop_loop()

        def on_close(_channel: Channel, reason: Exception) -> None:
            self._depth_channel, self._depth_error = None, str(reason)
            self._stop_loop()

        channel = connection.channel(on_open_callback=on_open)
        channel.add_on_close_callback(on_close)
        self._run_loop(CONFIRM_SECONDS)

    # The connection --------------------------------------------------------------------------------------------------

    def _open(self) -> Channel:
        if self._blocked and self._channel is not None:
            self._run_loop(0)  # RabbitMQ may have unblocked the connection
        return self._channel or self._reconnect()

    def _reconnect(self) -> Channel:
        choices: Any = self._broker.parameters
        choices = [choices] if not isinstance(choices, list) else random.sample(choices, len(choices))
        for parameters in choices:
            channel = self._connect(parameters)
            if channel is not None:
                return channel
        raise Unreachable(self._close_reason or f"{self._address} gives no answer")

    def _connect(self, parameters: pika.connection.Parameters) -> Channel | None:
        self.close()  # a node that did not answer left a connection
        self._close_reason = self._blocked = ""
        self._address = address(parameters)
        self._connection = SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=lambda _, error: self._on_lost(error),
            on_close_callback=lambda _, error: self._on_lost(error),
        )
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._run_loop(CONFIRM_SECONDS)
        return self._channel

    def _check_blocked(self) -> None:
        if self._blocked:
            raise Unreachable(self._blocked)

    def _on_blocked(self, _connection: SelectConnection, frame: Any) -> None:
        self._blocked = f"{self._address} blocks publishers: {frame.method.reason}"
        self._stop_loop()

    def _on_unblocked(self, _connection: SelectConnection, _frame: Any) -> None:
        self._blocked = ""

    def _on_channel(self, channel: Channel) -> None:
        self._first_tag = self._next_tag = self._lowest_tag = 1
        self._unconfirmed = set()
        channel.add_on_close_callback(lambda _, error: self._on_lost(error))
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._on_ready(channel))

    def _on_ready(self, channel: Channel) -> None:
        self._channel = channel
        self._stop_loop()

    def _on_lost(self, error: BaseException) -> None:
        self._close_reason = f"{self._address}: {reason(error)}"
        self._channel = self._depth_channel = None
        self._stop_loop()

    def _stop_loop(self) -> None:
        if self._connection is not None:
            self._connection.ioloop.stop()

    def _run_loop(self, seconds: float) -> None:
        """Serve the connection until `_stop_loop` is called, for `seconds` at most."""
        if self._connection is None:
            return
        loop = self._connection.ioloop
        timer = loop.call_later(seconds, loop.stop)
        loop.start()
        loop.remove_timeout(timer)

    def serve(self, *, reconnect: bool = False) -> None:
        """See Transport."""
        if self._channel is not None:
            self._run_loop(0)
        if self._channel is None and self._connection is not None:
            self.trouble = self._close_reason
        if reconnect and self.trouble:
            self._open()
            self.trouble = self._blocked or None
        if reconnect:
            self._check_blocked()

    def close(self) -> None:
        """See Transport."""
        self._channel = self._depth_channel = None
        if self._connection is None:
            return
        try:
            if self._connection.is_open:
                self._connection.close()
            for _ in range(10):
                # Its channels close first, and each stops the loop.
                if not self._connection.is_closed:
                    self._run_loop(0.2)
            if not self._connection.is_closed:  # RabbitMQ does not answer that it closes, either
                self._connection._adapter_disconnect_stream()  # noqa: SLF001 — pika would wait without a limit
                self._run_loop(0.2)
            self._connection.ioloop.close()
        except Exception:
            log.debug("closing the publisher's connection failed", exc_info=True)
        self._connection = None


def address(parameters: Any) -> str:
    """Return a broker's address, or those of its nodes, without credentials."""
    nodes = parameters if isinstance(parameters, list) else [parameters]
    return "RabbitMQ at " + " or ".join(f"{node.host}:{node.port}" for node in nodes)


def _merged(confirmed: Sequence[bool], again: Sequence[int], answers: Sequence[bool]) -> list[bool]:
    """Return what is confirmed of a batch whose messages `again` were published twice; `answers` may be fewer."""
    late = {n for n, done in zip(again, answers, strict=False) if done}
    return [done or n in late for n, done in enumerate(confirmed)]


def _queue(out: Outgoing) -> str:
    return str(xq_name(out.queue)) if out.dead else out.queue
