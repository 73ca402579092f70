"""How messages get onto a broker: to RabbitMQ with asynchronous confirms, to any other by its own `enqueue`."""

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pika
from dramatiq import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerConnectionError
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from callboard.middleware import envelope
from callboard.sql.rows import Outgoing

log = logging.getLogger("callboard.publisher")

#: Seconds to wait for a connection, or for the confirms of a batch, before the connection is given up.
PATIENCE = 20.0
#: Messages handed to the socket before it is served.
STRIDE = 100


class Unreachable(RuntimeError):
    """The broker can't be reached, or stopped answering; what it had confirmed is in `confirmed`."""

    def __init__(self, why: str, confirmed: Sequence[bool] = ()) -> None:
        super().__init__(why)
        self.confirmed = list(confirmed)


class Link(Protocol):
    """What the publisher needs of a broker. A link belongs to one thread."""

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """Publish a batch; tells of each message whether the broker has it. Raises Unreachable."""

    def depth(self, queue: str) -> int:
        """Messages that lie ready in a queue; raises Unreachable."""

    def serve(self) -> None:
        """Let the connection do what is due (heartbeats), without waiting."""

    def close(self) -> None:
        """Give the connection back."""


class DirectLink:
    """The way onto a broker that confirms by returning: the in-process one, Redis, anybody's."""

    def __init__(self, broker: Broker, enqueue: Callable[..., Any]) -> None:
        self._broker = broker
        self._enqueue = enqueue

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """See Link."""
        confirmed: list[bool] = []
        for out in batch:
            try:
                self._enqueue(envelope.message(out))
            except Exception as error:
                raise Unreachable(
                    f"{type(self._broker).__name__} refused a message: {error}", confirmed
                ) from error
            confirmed.append(True)
        return confirmed

    def depth(self, queue: str) -> int:
        """See Link; a broker that can't tell is taken for empty."""
        waiting = getattr(self._broker, "queues", {})
        return int(waiting[queue].qsize()) if isinstance(waiting, dict) and queue in waiting else 0

    def serve(self) -> None:
        """See Link."""

    def close(self) -> None:
        """See Link."""


class RabbitmqLink:
    """The way onto RabbitMQ: publisher confirms that nobody waits for singly (pika's SelectConnection)."""

    def __init__(self, broker: RabbitmqBroker) -> None:
        self._broker = broker
        self._connection: SelectConnection | None = None
        self._channel: Channel | None = None
        self._asking: Channel | None = None
        self._why = self._unanswered = ""
        self._first_tag = self._next_tag = self._lowest = 1
        self._outstanding: set[int] = set()
        self._refused: set[int] = set()
        self._returned: list[tuple[str, str]] = []  # (message id, queue)

    # Publishing ------------------------------------------------------------------------------------------------------

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """See Link. A queue that does not exist is declared, and its messages are sent once more."""
        confirmed = self._send(batch)
        if not self._returned:
            return confirmed
        try:
            for queue in {queue for _, queue in self._returned}:
                self._declare(queue)
        except BrokerConnectionError as error:
            raise Unreachable(f"a queue can't be declared: {error}", confirmed) from error
        again = [n for n, done in enumerate(confirmed) if not done]
        for n, done in zip(again, self._send([batch[n] for n in again]), strict=True):
            confirmed[n] = done
        return confirmed

    def _send(self, batch: Sequence[Outgoing]) -> list[bool]:
        channel = self._open()
        self._first_tag, self._returned, self._refused = self._next_tag, [], set()
        for n, out in enumerate(batch, 1):
            self._outstanding.add(self._next_tag)
            self._next_tag += 1
            channel.basic_publish("", out.queue, envelope.body(out), envelope.properties(out), mandatory=True)
            if n % STRIDE == 0:
                self._run(0)
            if self._channel is None:
                break
        if self._outstanding and self._channel is not None:
            self._run(PATIENCE)
        confirmed = self._confirmed(batch)
        if self._outstanding or self._channel is None:
            why = (
                self._why or f"no confirm within {PATIENCE:.0f} s (a memory or disk alarm blocks publishers)"
            )
            self.close()
            raise Unreachable(why, confirmed)
        return confirmed

    def _confirmed(self, batch: Sequence[Outgoing]) -> list[bool]:
        sent = self._next_tag - self._first_tag
        missed = self._outstanding | self._refused
        returned = {message_id for message_id, _ in self._returned}
        return [
            n < sent and self._first_tag + n not in missed and out.message_id not in returned
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
        self._open()
        answer: list[int] = []

        def tell(frame: Any) -> None:
            answer.append(frame.method.message_count)
            self._stop()

        self._unanswered = ""
        if self._asking is None and self._connection is not None:
            self._open_asking(self._connection)
        if self._asking is not None:
            self._asking.queue_declare(queue, passive=True, callback=tell)
            self._run(PATIENCE)
        if self._channel is None:
            raise Unreachable(self._why)
        if not answer and "NOT_FOUND - no queue" not in self._unanswered:
            raise Unreachable(self._unanswered or f"nothing is known of the queue {queue!r}")
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
        self._run(PATIENCE)

    # The connection --------------------------------------------------------------------------------------------------

    def _open(self) -> Channel:
        if self._channel is not None:
            return self._channel
        return self._reconnect()

    def _reconnect(self) -> Channel:
        self.close()
        choices: Any = self._broker.parameters
        choices = [choices] if not isinstance(choices, list) else random.sample(choices, len(choices))
        for parameters in choices:
            channel = self._connect(parameters)
            if channel is not None:
                return channel
        raise Unreachable(self._why or "no answer")

    def _connect(self, parameters: pika.connection.Parameters) -> Channel | None:
        self._why = ""
        self._connection = SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=lambda _, error: self._on_lost(error),
            on_close_callback=lambda _, error: self._on_lost(error),
        )
        self._run(PATIENCE)
        return self._channel

    def _on_channel(self, channel: Channel) -> None:
        self._first_tag = self._next_tag = self._lowest = 1
        self._outstanding = set()
        channel.add_on_close_callback(lambda _, error: self._on_lost(error))
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._on_ready(channel))

    def _on_ready(self, channel: Channel) -> None:
        self._channel = channel
        self._stop()

    def _on_lost(self, error: object) -> None:
        self._why = str(error) or type(error).__name__
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

    def serve(self) -> None:
        """See Link."""
        if self._channel is not None:
            self._run(0)

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
            self._connection.ioloop.close()
        except Exception:
            log.debug("closing the publisher's connection failed", exc_info=True)
        self._connection = None
