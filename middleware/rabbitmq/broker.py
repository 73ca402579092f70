"""Dramatiq's RabbitMQ broker, tracked, and its drop-in replacement with quorum queues."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pika
from dramatiq.broker import Consumer
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from callboard.middleware.process.outage import reason
from callboard.middleware.rabbitmq.confirms import CHANNELS, TOO_FEW_CHANNELS, ConfirmingPublisher, address
from callboard.middleware.rabbitmq.consumer import RabbitmqConsumer
from callboard.middleware.runtime import Runtime
from callboard.middleware.tracked_broker import TrackedBroker
from callboard.sql.pool import database_address
from callboard.sql.settings import NotConfigured


class TrackedRabbitmqBroker(TrackedBroker, StockBroker):
    """Dramatiq's RabbitmqBroker, tracked."""

    def start_tracking(self, database_url: str) -> None:
        """See TrackedBroker. Raises NotConfigured if the publisher can't have its channels."""
        nodes: Any = self.parameters
        nodes = nodes if isinstance(nodes, list) else [nodes]
        if any(node.channel_max < CHANNELS for node in nodes):
            raise NotConfigured(f"{address(nodes)} {TOO_FEW_CHANNELS}")
        self._track(Runtime(database_url, partial(ConfirmingPublisher, self), remote=True))

    @property
    def consumer_class(self) -> Callable[..., Consumer]:
        """Return the factory of consumers that `consume` calls."""
        return partial(RabbitmqConsumer, runtime=self.runtime)

    @property
    def connection(self) -> pika.BlockingConnection:
        """See Dramatiq's broker. Its callers do not handle the AMQPConnectorException that pika raises for a node that
        accepts a connection and sends nothing.
        """
        try:
            return super().connection
        except AMQPConnectorException as error:
            raise pika.exceptions.AMQPConnectionError(str(error)) from error

    @connection.deleter
    def connection(self) -> None:
        StockBroker.connection.__delete__(self)  # type: ignore[attr-defined]

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Make a consumer. Raises ConnectionClosed; if the queue can't be declared, `cut_off` keeps the reason."""
        try:
            self.declare_queue(queue_name, ensure=True)
        except ConnectionClosed as error:
            self.runtime.consumers.cut_off[queue_name] = f"{address(self.parameters)}: {reason(error)}"
            raise
        return self.consumer_class(self, queue_name, prefetch, timeout)

    def join(
        self, queue_name: str, min_successes: int = 10, idle_time: int = 100, *, timeout: int | None = None
    ) -> None:
        """Wait until all items of a queue have ended, and the queue is empty; `timeout` is in milliseconds."""
        left = self.join_items(queue_name, timeout)
        super().join(queue_name, min_successes, idle_time, timeout=left)
        self.join_items(queue_name, left)


class RabbitmqBroker(TrackedRabbitmqBroker):
    """Dramatiq's RabbitmqBroker, tracked. It takes all of its parameters; `database_url` defaults to ``DATABASE_URL``.

    `queue_type="quorum"` declares quorum queues without a delivery limit. Crashes are counted in the database, and
    RabbitMQ 4's default limit of 20 would count prefetched messages that never started.
    """

    def __init__(
        self, *, url: str | list[str] | None = None, middleware: list[Middleware] | None = None,
        database_url: str | None = None, queue_type: Literal["classic", "quorum"] = "classic", **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(url=url, middleware=middleware, **kwargs)
        if queue_type == "quorum" and self.max_priority:
            raise ValueError(
                "quorum queues take no max_priority: leave it out (from RabbitMQ 4 on they prefer messages with a "
                "broker_priority above 4 without it), or use classic queues"
            )
        self.queue_type = queue_type
        self.start_tracking(database_address(database_url))

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        if self.queue_type == "quorum":
            arguments |= {"x-queue-type": "quorum", "x-delivery-limit": -1}
        return arguments
