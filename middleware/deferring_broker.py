"""Any of Dramatiq's brokers but RabbitMQ's, tracked."""

import time
from functools import partial
from typing import Any

from dramatiq.broker import Consumer
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import QueueNotFound

from callboard.middleware.deferring_consumer import DeferringConsumer
from callboard.middleware.publish.transport import EnqueueTransport
from callboard.middleware.runtime import Runtime
from callboard.middleware.tracked_broker import TrackedBroker


class DeferringBroker(TrackedBroker):
    """See TrackedBroker. Stored messages are published by the `enqueue` of Dramatiq's class."""

    def start_tracking(self, database_url: str) -> None:
        """See TrackedBroker."""
        transport = partial(EnqueueTransport, self, super(TrackedBroker, self).enqueue)
        self._track(Runtime(database_url, transport, remote=not isinstance(self, StubBroker)))

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """See TrackedBroker. Raises QueueNotFound for a queue that was not declared, as StubBroker does."""
        if isinstance(self, StubBroker) and message.queue_name not in self.queues:
            raise QueueNotFound(message.queue_name)
        return super().enqueue(message, delay=delay)

    def join(self, queue_name: str, *, timeout: int | None = None, **options: Any) -> None:
        """Wait until all items of a queue have ended and its messages are acknowledged. A delayed message of another
        producer becomes an item when it is due, so both waits run twice. `timeout` is in milliseconds.
        """
        began = time.monotonic()
        for _ in range(2):
            left = None if timeout is None else timeout - round((time.monotonic() - began) * 1000)
            super().join(queue_name, timeout=self.join_items(queue_name, left), **options)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Make a consumer that acknowledges a message when its outcome is committed."""
        return DeferringConsumer(super().consume(queue_name, prefetch, timeout), queue_name, self.runtime)
