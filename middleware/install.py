"""Tracking put onto a broker: any of Dramatiq's, or ours."""

import logging
from functools import partial
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockRabbitmqBroker
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.publish.transport import EnqueueTransport, Transport
from callboard.middleware.rabbitmq.broker import RabbitmqBroker
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
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
        stock = broker.enqueue
        remote = not isinstance(broker, StubBroker)
        address = database_address(database_url)
        runtime = Runtime(address, partial(_link, broker, stock), remote=remote, defers=False)
        # The one way to see a retry before it is published, on a broker that isn't ours.
        broker.enqueue = lambda message, *, delay=None: runtime.send(broker, message, delay)  # type: ignore[method-assign]
        track(broker, runtime)
    return broker


def make_broker(database_url: str | None = None) -> dramatiq.Broker:
    """The broker at ``AMQP_URL`` (several nodes separated by ``;``), or one in this process."""
    address = settings.AMQP_URL.get()
    if not address:
        log.info("AMQP_URL is not set: messages stay in this process")
        return StubBroker()
    return RabbitmqBroker(url=address, database_url=database_url)


def _link(broker: dramatiq.Broker, stock: Any) -> Transport:
    return (
        ConfirmingPublisher(broker)
        if isinstance(broker, StockRabbitmqBroker)
        else EnqueueTransport(broker, stock)
    )
