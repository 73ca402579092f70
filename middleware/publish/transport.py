"""How messages get onto a broker: its own `enqueue` for any broker; `rabbitmq.confirms` has the one for RabbitMQ."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dramatiq import Broker

from callboard.middleware.message import envelope
from callboard.middleware.process.outage import reason
from callboard.sql.rows import Outgoing


class Unreachable(RuntimeError):
    """The broker can't be reached, or doesn't answer. `confirmed` says which messages of the batch it has."""

    def __init__(self, why: str, confirmed: Sequence[bool] = ()) -> None:
        super().__init__(why)
        self.confirmed = list(confirmed)


class RefusedByBroker(Unreachable):
    """The broker takes no message for one queue at present; it may take messages for others."""


class Transport(Protocol):
    """What the publisher needs of a broker. It belongs to one thread; any thread may read `trouble`."""

    trouble: str | None  # what keeps messages from the broker; None: nothing that is known
    takes_chunks: bool  # the broker's consumers take messages that carry many items apart
    in_order: bool  # a queue delivers its messages in the order in which they were published

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """Publish a batch; return for each message whether the broker has it. Raises Unreachable."""

    def depth(self, queue: str) -> int | None:
        """Return how many messages are ready in a queue; None when the broker can't tell. Raises Unreachable."""

    def serve(self, *, reconnect: bool = False) -> None:
        """Process what the connection has to do (heartbeats), without waiting.

        With `reconnect` a lost connection is opened again, which updates `trouble`; then it raises Unreachable when
        nothing can be published.
        """

    def close(self) -> None:
        """Close the connection; the next call opens it again."""


class EnqueueTransport:
    """Publishes by a broker's `enqueue`, whose return is the confirmation: in-process, Redis, or any other broker."""

    in_order = takes_chunks = False

    def __init__(self, broker: Broker, enqueue: Callable[..., Any]) -> None:
        self._broker = broker
        self._enqueue = enqueue
        self.trouble: str | None = None

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """See Transport. Dead letters are dropped: only RabbitMQ keeps them in a queue of their own."""
        confirmed: list[bool] = []
        for out in batch:
            try:
                if not out.dead:
                    self._enqueue(envelope.message(out))
            except Exception as error:
                self.trouble = f"{type(self._broker).__name__} refused a message: {reason(error)}"
                raise Unreachable(self.trouble, confirmed) from error
            confirmed.append(True)
        self.trouble = None
        return confirmed

    def depth(self, queue: str) -> int | None:
        """See Transport."""
        waiting = getattr(self._broker, "queues", {})
        if not isinstance(waiting, dict):
            return None
        return int(waiting[queue].qsize()) if queue in waiting else 0

    def serve(self, *, reconnect: bool = False) -> None:
        """See Transport."""

    def close(self) -> None:
        """See Transport."""
