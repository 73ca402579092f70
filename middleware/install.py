"""Puts tracking onto a broker: any of Dramatiq's, or ours."""

import logging
from contextlib import suppress
from typing import Any, cast

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockRabbitmqBroker
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.deferring_broker import DeferringBroker
from callboard.middleware.rabbitmq import queue_admin
from callboard.middleware.rabbitmq.broker import RabbitmqBroker, TrackedRabbitmqBroker
from callboard.middleware.rabbitmq.confirms import address
from callboard.middleware.tracked_broker import TrackedBroker
from callboard.middleware.tracking import Tracking, tracking_of
from callboard.sql.pool import broker_addresses, database_address, is_database_named
from callboard.sql.settings import NotConfigured

log = logging.getLogger("callboard")


def install(broker: dramatiq.Broker | None = None, *, database_url: str | None = None) -> dramatiq.Broker:
    """Track everything that `broker` sends and processes; calling it again changes nothing. Returns the broker.

    Without `broker`, Dramatiq's global broker is tracked. If Dramatiq has none, a broker is made from ``AMQP_URL`` (the
    in-process one when that isn't set) and becomes the global one. Call it where the broker is made, before or after
    actors are declared; before them if no broker is made, because Dramatiq makes a default one for the first actor.
    Raises NotConfigured without a database. A StubBroker of the app without a database runs its actors untracked
    instead: an app's own tests need no database.
    """
    if not (broker is None or isinstance(broker, dramatiq.Broker)):
        raise TypeError(f"install() takes a broker of Dramatiq's, not {broker!r:.100}")
    if broker is None:
        broker = dramatiq.broker.global_broker
        _warn_of_default_broker(broker, database_url)
    if broker is None:
        database_address(database_url)  # raises: without a database our own broker is of no use
        broker = make_broker(database_url)
        dramatiq.set_broker(broker)
    if isinstance(broker, StubBroker) and not is_database_named(database_url):
        log.warning("DATABASE_URL is not set: the StubBroker runs its actors, and records nothing")
        broker.actor_options |= Tracking.actor_options
    elif tracking_of(broker) is None:
        database = database_address(database_url)
        if not isinstance(broker, TrackedBroker):
            broker.__class__ = _tracked_class(type(broker))
        cast("TrackedBroker", broker).start_tracking(database)
    return broker


def make_broker(database_url: str | None = None) -> dramatiq.Broker:
    """Return a broker for `broker_addresses` (several nodes separated by ``;``), or an in-process one without an
    address.

    Raises NotConfigured for an address that can't be used.
    """
    addresses = broker_addresses(database_url)
    if not addresses:
        log.warning(
            "AMQP_URL is not set: messages stay in this process, no worker of another process gets them, and they are "
            "lost when it ends; set AMQP_URL, or pass a broker to callboard.install()"
        )
        return StubBroker()
    try:
        return RabbitmqBroker(url=addresses, database_url=database_url)
    except queue_admin.UNUSABLE:
        for node in addresses.split(";"):
            try:
                queue_admin.parameters_of(node)
            except queue_admin.NoAnswer as error:
                raise NotConfigured(str(error)) from None
        raise


def _warn_of_default_broker(broker: dramatiq.Broker | None, database_url: str | None) -> None:
    """Warn if Dramatiq made its default broker, because an actor was declared first, and another one is named."""
    default = ("127.0.0.1", 5672, "/")
    if (
        not isinstance(broker, StockRabbitmqBroker)
        or tracking_of(broker) is not None
        or _place(broker.parameters) != default
    ):
        return
    with suppress(NotConfigured, queue_admin.NoAnswer):
        named = broker_addresses(database_url).split(";")
        nodes = [queue_admin.parameters_of(node) for node in named if node.strip()]
        if nodes and default not in map(_place, nodes):
            log.warning(
                "messages go to Dramatiq's default broker at 127.0.0.1:5672, not to AMQP_URL (%s), because Dramatiq "
                "makes it for the first actor: call callboard.install() before that",
                address(nodes),
            )


def _tracked_class(cls: type[dramatiq.Broker]) -> type[TrackedBroker]:
    """Return the tracked subclass of this class of a broker.

    An existing broker gets this class. To set `enqueue` on the broker itself would hide the `enqueue` of an app's
    class.
    """
    if issubclass(cls, StockRabbitmqBroker):
        return TrackedRabbitmqBroker if cls is StockRabbitmqBroker else _named(cls, cls, TrackedRabbitmqBroker)
    # Dramatiq's own class, or this class if it inherits from none of Dramatiq's brokers.
    stock = next((c for c in cls.__mro__ if c.__module__.startswith("dramatiq.brokers.")), cls)
    tracked = _named(stock, DeferringBroker, stock)
    return tracked if cls is stock else _named(cls, cls, tracked)


def _place(parameters: Any) -> tuple[str, int, str] | None:
    """Return host, port and virtual host; None for several nodes."""
    if isinstance(parameters, list):
        return None
    host = "127.0.0.1" if parameters.host in ("localhost", "::1") else parameters.host
    return host, parameters.port, parameters.virtual_host


def _named(cls: type, *bases: type) -> type[TrackedBroker]:
    return type(cls.__name__, bases, {"__module__": cls.__module__})
