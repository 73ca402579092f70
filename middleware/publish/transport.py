"""Publishes messages to a broker by its own `enqueue`. For RabbitMQ see `rabbitmq.confirms`."""

import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

from dramatiq import Broker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import QueueNotFound

from callboard.middleware.message import envelope
from callboard.middleware.message.failure import describe
from callboard.middleware.process.outage import reason
from callboard.sql.rows import Outgoing

#: The name of an in-process broker.
IN_PROCESS = "a broker within its process"
#: Whether this thread publishes a stored message, whose hooks already ran when it was sent.
publishing: ContextVar[bool] = ContextVar("callboard_publishing", default=False)


class Unpublishable(ValueError):
    """A message can never be published: it can't be encoded, or the broker rejects it."""


#: The answer to a message: True: confirmed; False: not taken this time; Unpublishable: never taken.
Answer: TypeAlias = bool | Unpublishable


class Unreachable(RuntimeError):
    """The broker can't be reached, or doesn't answer. `answers` are the answers to the first messages of the batch; an
    unknown answer is False.
    """

    def __init__(self, why: str, answers: Sequence[Answer] = ()) -> None:
        super().__init__(why)
        self.answers = list(answers)


class Transport(Protocol):
    """A broker as the publisher uses it. It belongs to one thread; any thread may read `trouble`."""

    takes_chunks: bool  # the broker's consumers can read messages that carry many items
    in_order: bool  # a queue delivers its messages in the order in which they were published
    while_waiting: Callable[[], None] | None  # called every few seconds while a call waits for the broker

    @property
    def trouble(self) -> str | None:
        """The reason why the broker takes no messages; None when none is known."""

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        """Publish a batch; return an answer for each message. Raises Unreachable.

        A message that can't be encoded does not stop the others.
        """

    def depth(self, queue: str) -> int | None:
        """Return how many messages are ready in a queue; None when the broker can't tell. Raises Unreachable."""

    def name(self) -> str | None:
        """Return the broker's name, the same for each of its addresses; None when it has none. Raises Unreachable."""

    def gave_name(self, name: str) -> bool:
        """Return whether this `name` is one of the broker's: a cluster may have several. Raises Unreachable."""

    def serve(self, *, reconnect: bool = False) -> None:
        """Process the connection's events (heartbeats), without waiting.

        With `reconnect` a lost connection is opened again, which updates `trouble`; raises Unreachable if nothing can
        be published.
        """

    def close(self) -> None:
        """Close the connection; the next call opens it again."""


class EnqueueTransport:
    """Publishes by the `enqueue` of any broker, such as Redis. A call that returns counts as confirmed."""

    in_order = takes_chunks = False

    def __init__(self, broker: Broker, enqueue: Callable[..., Any]) -> None:
        self._broker = broker
        self._enqueue = enqueue
        self.trouble: str | None = None
        self.while_waiting: Callable[[], None] | None = None

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        """See Transport. Dead letters are dropped: only RabbitMQ keeps them in a queue of their own."""
        answers: list[Answer] = []
        for out in batch:
            try:
                answers.append(out.dead or self._publish_one(out))
            except Unpublishable as error:
                answers.append(error)
            except Exception as error:
                self.trouble = f"{type(self._broker).__name__} refused a message: {reason(error)}"
                raise Unreachable(self.trouble, answers) from error
        self.trouble = None
        return answers

    def _publish_one(self, out: Outgoing) -> bool:
        try:
            envelope.check_encoder(out)
            message = envelope.message(out)
            message.encode()
        except envelope.OtherEncoder:
            return False
        except Exception as error:
            raise cannot_encode(error) from error
        token = publishing.set(True)
        try:
            self._enqueue(message)
        except QueueNotFound:
            return False  # the queue may be declared later
        finally:
            publishing.reset(token)
        return True

    def depth(self, queue: str) -> int | None:
        """See Transport."""
        if isinstance(self._broker, StubBroker):
            waiting = self._broker.queues
            return waiting[queue].qsize() if queue in waiting else 0
        if not self._is_redis():
            return None
        redis: Any = self._broker
        try:
            return int(redis.client.llen(f"{redis.namespace}:{queue}"))
        except Exception as error:
            self.trouble = f"Redis can't return the length of the queue {queue!r}: {reason(error)}"
            raise Unreachable(self.trouble) from error

    def name(self) -> str | None:
        """See Transport: the kind of the broker, since two of one kind can't be told apart."""
        if isinstance(self._broker, StubBroker):
            return IN_PROCESS
        return "Redis" if self._is_redis() else None

    def _is_redis(self) -> bool:
        stock = sys.modules.get("dramatiq.brokers.redis")  # its import needs Redis's client, which may be missing
        return stock is not None and isinstance(self._broker, stock.RedisBroker)

    def gave_name(self, name: str) -> bool:
        """See Transport."""
        return name == self.name()

    def serve(self, *, reconnect: bool = False) -> None:
        """See Transport."""

    def close(self) -> None:
        """See Transport."""


def cannot_encode(error: Exception) -> Unpublishable:
    """Return the answer to a message whose encoding raised `error`."""
    found = describe(error)
    return Unpublishable(f"the message can't be encoded: {found.error_type}: {found.message}")
