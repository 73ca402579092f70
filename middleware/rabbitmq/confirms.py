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

#: Seconds to wait for a connection, or for the confirms of a batch, before the connection is given up.
CONFIRM_SECONDS = 20.0
#: Seconds for which a batch waits when RabbitMQ says that it takes nothing: less than a claim holds.
BLOCKED_SECONDS = 5.0
#: Messages handed to the socket before it is served.
SERVE_EVERY_MESSAGES = 100
log = logging.getLogger("callboard.publisher")


class ConfirmingPublisher:
    """The way onto RabbitMQ: publisher confirms that nobody waits for singly (pika's SelectConnection)."""

    def __init__(self, broker: RabbitmqBroker, *, carries: bool = False) -> None:
        self._broker = broker
        self.carries = carries
        self._connection: SelectConnection | None = None
        self._channel: Channel | None = None
        self._asking: Channel | None = None
        self.trouble: str | None = None
        self.in_order = not broker.max_priority
        self._where = self._why = self._unanswered = self._blocked = ""
        self._first_tag = self._next_tag = self._lowest = 1
        self._outstanding: set[int] = set()
        self._refused: set[int] = set()
        self._returned: list[tuple[str, str]] = []  # (message id, queue)

    # Publishing ------------------------------------------------------------------------------------------------------

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """See Link. A queue that does not exist is declared, and its messages are sent once more."""
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
        self._check_blocked()  # it would read this only after the alarm: one more copy a try
        self._first_tag, self._returned, self._refused = self._next_tag, [], set()
        self._outstanding = set()
        for n, out in enumerate(batch, 1):
            self._outstanding.add(self._next_tag)
            self._next_tag += 1
            channel.basic_publish(
                "", _queue(out), envelope.body(out), envelope.properties(out), mandatory=True
            )
            if n % SERVE_EVERY_MESSAGES == 0:
                self._run(0)
            if self._channel is None:
                break
        self._await_confirms()
        confirmed = self._confirmed(batch)
        if self._blocked and self._outstanding:
            raise Unreachable(self._blocked, confirmed)
        if self._outstanding or self._channel is None:
            why = self._why or f"{self._where} confirmed nothing within {CONFIRM_SECONDS:.0f} s"
            self.close()
            raise Unreachable(why, confirmed)
        return confirmed

    def _await_confirms(self) -> None:
        if self._unconfirmed():
            self._run(BLOCKED_SECONDS if self._blocked else CONFIRM_SECONDS)
        if self._blocked and self._unconfirmed():
            self._run(BLOCKED_SECONDS)  # it was told meanwhile

    def _unconfirmed(self) -> bool:
        return bool(self._outstanding) and self._channel is not None

    def _confirmed(self, batch: Sequence[Outgoing]) -> list[bool]:
        sent = self._next_tag - self._first_tag
        missed = self._outstanding | self._refused
        returned = {message_id for message_id, _ in self._returned}
        return [
            n < sent and self._first_tag + n not in missed and envelope.message_id(out) not in returned
            for n, out in enumerate(batch)
        ]

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tags = range(self._lowest, method.delivery_tag + 1) if method.multiple else (method.delivery_tag,)
        if method.multiple:
            self._lowest = method.delivery_tag + 1
        self._outstanding.difference_update(tags)
        if isinstance(method, pika.spec.Basic.Nack):
            self._refused.update(tags)
        if not self._outstanding:
            self._stop()

    def _on_return(
        self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        self._returned.append((properties.message_id or "", method.routing_key))

    def _declare(self, queue: str) -> None:
        """Declare a queue that is missing, with its delay and dead-letter queues, as the broker would.

        Not by `declare_queue`: that makes a worker consume it, whether or not it has its actors.
        """
        self._broker.queues_pending.add(queue)
        self._broker._ensure_queue(queue)  # noqa: SLF001

    # Asking ----------------------------------------------------------------------------------------------------------

    def depth(self, queue: str) -> int:
        """See Link; 0 for a queue that isn't there yet."""
        try:
            found = self._depth(queue)
        except Unreachable as error:
            self.trouble = str(error)
            raise
        self.trouble = None
        return found

    def _depth(self, queue: str) -> int:
        self._open()
        self._check_blocked()  # it would not read the question
        answer: list[int] = []

        def tell(frame: Any) -> None:
            answer.append(frame.method.message_count)
            self._stop()

        self._unanswered = ""
        if self._asking is None and self._connection is not None:
            self._open_asking(self._connection)
        if self._asking is not None:
            self._asking.queue_declare(queue, passive=True, callback=tell)
            self._run(CONFIRM_SECONDS)
        if self._channel is None:
            raise Unreachable(self._why)
        if not answer and not self._unanswered:
            self.close()  # an answer that comes after all would be taken for one to what is said next
            raise Unreachable(
                f"{self._where} tells nothing of the queue {queue!r} within {CONFIRM_SECONDS:.0f} s"
            )
        if not answer and "NOT_FOUND - no queue" not in self._unanswered:
            raise Unreachable(self._unanswered)
        return answer[0] if answer else 0

    def _open_asking(self, connection: SelectConnection) -> None:
        def opened(channel: Channel) -> None:
            self._asking = channel
            self._stop()

        def closed(_channel: Channel, reason: Exception) -> None:
            # A missing queue closes the channel that asked for it; so does one whose node is down.
            self._asking, self._unanswered = None, str(reason)
            self._stop()

        channel = connection.channel(on_open_callback=opened)
        channel.add_on_close_callback(closed)
        self._run(CONFIRM_SECONDS)

    # The connection --------------------------------------------------------------------------------------------------

    def _open(self) -> Channel:
        if self._blocked and self._channel is not None:
            self._run(0)  # perhaps it says that the alarm is over
        return self._channel or self._reconnect()

    def _reconnect(self) -> Channel:
        choices: Any = self._broker.parameters
        choices = [choices] if not isinstance(choices, list) else random.sample(choices, len(choices))
        for parameters in choices:
            channel = self._connect(parameters)
            if channel is not None:
                return channel
        raise Unreachable(self._why or f"{self._where} gives no answer")

    def _connect(self, parameters: pika.connection.Parameters) -> Channel | None:
        self.close()  # also that of a node which gave no answer
        self._why = self._blocked = ""
        self._where = address(parameters)
        self._connection = SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=lambda _, error: self._on_lost(error),
            on_close_callback=lambda _, error: self._on_lost(error),
        )
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._run(CONFIRM_SECONDS)
        return self._channel

    def _check_blocked(self) -> None:
        if self._blocked:
            raise Unreachable(self._blocked)

    def _on_blocked(self, _connection: SelectConnection, frame: Any) -> None:
        self._blocked = f"{self._where} blocks publishers: {frame.method.reason}"
        self._stop()

    def _on_unblocked(self, _connection: SelectConnection, _frame: Any) -> None:
        self._blocked = ""

    def _on_channel(self, channel: Channel) -> None:
        self._first_tag = self._next_tag = self._lowest = 1
        self._outstanding = set()
        channel.add_on_close_callback(lambda _, error: self._on_lost(error))
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._on_ready(channel))

    def _on_ready(self, channel: Channel) -> None:
        self._channel = channel
        self._stop()

    def _on_lost(self, error: BaseException) -> None:
        self._why = f"{self._where}: {reason(error)}"
        self._channel = self._asking = None
        self._stop()

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.ioloop.stop()

    def _run(self, seconds: float) -> None:
        """Serve the connection until something calls `_stop`, at most for so long."""
        if self._connection is None:
            return
        loop = self._connection.ioloop
        timer = loop.call_later(seconds, loop.stop)
        loop.start()
        loop.remove_timeout(timer)

    def serve(self, *, mend: bool = False) -> None:
        """See Link."""
        if self._channel is not None:
            self._run(0)
        if self._channel is None and self._connection is not None:
            self.trouble = self._why
        if mend and self.trouble:
            self._open()
            self.trouble = self._blocked or None
        if mend:
            self._check_blocked()

    def close(self) -> None:
        """See Link."""
        self._channel = self._asking = None
        if self._connection is None:
            return
        try:
            if self._connection.is_open:
                self._connection.close()
            for _ in range(10):
                # Its channels close first, and each stops the loop.
                if not self._connection.is_closed:
                    self._run(0.2)
            if not self._connection.is_closed:  # it gives no answer to that either
                self._connection._adapter_disconnect_stream()  # noqa: SLF001 — pika waits for ever
                self._run(0.2)
            self._connection.ioloop.close()
        except Exception:
            log.debug("closing the publisher's connection failed", exc_info=True)
        self._connection = None


def address(parameters: Any) -> str:
    """A broker's address, or its nodes', as it may be logged."""
    nodes = parameters if isinstance(parameters, list) else [parameters]
    return "RabbitMQ at " + " or ".join(f"{node.host}:{node.port}" for node in nodes)


def _merged(confirmed: Sequence[bool], again: Sequence[int], answers: Sequence[bool]) -> list[bool]:
    """What is confirmed of a batch, of which those numbered `again` were sent once more; `answers` may be fewer."""
    late = {n for n, done in zip(again, answers, strict=False) if done}
    return [done or n in late for n, done in enumerate(confirmed)]


def _queue(out: Outgoing) -> str:
    return str(xq_name(out.queue)) if out.dead else out.queue
