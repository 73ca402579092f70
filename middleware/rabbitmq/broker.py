"""The drop-in for Dramatiq's RabbitMQ broker: tracked, with quorum queues, and with hooks that are looked up once."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from dramatiq.broker import Consumer
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockBroker
from dramatiq.middleware import Middleware

from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
from callboard.middleware.rabbitmq.consumer import RabbitmqConsumer
from callboard.middleware.rabbitmq.hook_cache import HookCache
from callboard.middleware.runtime import Runtime
from callboard.middleware.tracking import track
from callboard.sql.pool import database_address


class RabbitmqBroker(StockBroker):
    """Dramatiq's RabbitmqBroker, tracked. All of its parameters hold; `database_url` defaults to ``DATABASE_URL``.

    `queue_type="quorum"` declares quorum queues, without a delivery limit: crashes are counted in the database, and
    RabbitMQ 4's default of 20 counts prefetched messages that never started.
    """

    def __init__(
        self, *, url: str | list[str] | None = None, middleware: list[Middleware] | None = None,
        database_url: str | None = None, queue_type: Literal["classic", "quorum"] = "classic", **kwargs: Any,
    ) -> None:  # fmt: skip
        self._hooks = HookCache(self, logging.getLogger("dramatiq.broker.RabbitmqBroker"))
        super().__init__(url=url, middleware=middleware, **kwargs)
        self.queue_type = queue_type
        self.runtime = Runtime(
            database_address(database_url), partial(ConfirmingPublisher, self), remote=True
        )
        track(self, self.runtime)

    @property
    def consumer_class(self) -> Callable[..., Consumer]:
        """Makes the consumer of a queue, for `consume`."""
        return partial(RabbitmqConsumer, runtime=self.runtime)

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """See `HookCache`."""
        self._hooks.before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """See `HookCache`."""
        self._hooks.after(signal, *args, **kwargs)

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Record a message, then publish it, `delay` milliseconds later. Raises NotStored when it can't be recorded."""
        return self.runtime.send(self, message, delay)

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        if self.queue_type == "quorum":
            arguments |= {"x-queue-type": "quorum", "x-delivery-limit": -1}
        return arguments
