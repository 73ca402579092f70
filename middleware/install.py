"""Puts tracking onto a broker: any of Dramatiq's, or ours."""

import logging
from functools import partial
from typing import Any

import dramatiq
from dramatiq.broker import Consumer
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockRabbitmqBroker
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.deferring_consumer import DeferringConsumer
from callboard.middleware.publish.transport import EnqueueTransport
from callboard.middleware.rabbitmq.broker import RabbitmqBroker
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
from callboard.middleware.rabbitmq.consumer import RabbitmqConsumer
from callboard.middleware.runtime import Runtime
from callboard.middleware.tracking import track, tracking_of
from callboard.sql import settings
from callboard.sql.pool import database_address

log = logging.getLogger("callboard")


def install(broker: dramatiq.Broker | None = None, *, database_url: str | None = None) -> dramatiq.Broker:
    """Track everything that `broker` sends and processes; calling it again changes nothing. Returns the broker.

    Without one, a broker is made from ``AMQP_URL`` (the in-process one when that isn't set) and becomes Dramatiq's.
    Call it where the broker is made, before actors are declared or after; raises NotConfigured without a database.
    """
    if broker is None:
        # `dramatiq callboard.actors my_module` where both install: actors of one process share one broker.
        if (present := dramatiq.broker.global_broker) is not None and tracking_of(present) is not None:
            return present
        broker = make_broker(database_url)
        dramatiq.set_broker(broker)
    if tracking_of(broker) is None:
        _track(broker, database_address(database_url))
    return broker


def make_broker(database_url: str | None = None) -> dramatiq.Broker:
    """The broker at ``AMQP_URL`` (several nodes separated by ``;``), or one in this process."""
    address = settings.AMQP_URL.get()
    if not address:
        log.info("AMQP_URL is not set: messages stay in this process")
        return StubBroker()
    return RabbitmqBroker(url=address, database_url=database_url)


def _track(broker: dramatiq.Broker, database_url: str) -> None:
    """Replace the broker's `enqueue` and `consume`. A broker of another class offers no other way to see a retry before
    it is published, and to acknowledge after a commit.
    """
    enqueue, consume = broker.enqueue, broker.consume
    if isinstance(broker, StockRabbitmqBroker):
        runtime = Runtime(database_url, partial(ConfirmingPublisher, broker), remote=True)
    else:
        transport = partial(EnqueueTransport, broker, enqueue)
        runtime = Runtime(database_url, transport, remote=not isinstance(broker, StubBroker))

    def tracked_enqueue(message: Any, *, delay: int | None = None) -> Any:
        return runtime.send(broker, message, delay)

    def tracked_consume(queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        if isinstance(broker, StockRabbitmqBroker):
            broker.declare_queue(queue_name, ensure=True)
            return RabbitmqConsumer(broker, queue_name, prefetch, timeout, runtime=runtime)
        return DeferringConsumer(consume(queue_name, prefetch, timeout), runtime)

    broker.enqueue = tracked_enqueue  # type: ignore[method-assign]
    broker.consume = tracked_consume  # type: ignore[method-assign]
    track(broker, runtime)
