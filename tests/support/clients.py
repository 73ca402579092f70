"""A process that submits and sends, as a web app would: a tracked broker with the names of the workers' actors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dramatiq

import callboard
from callboard.middleware.tracking import runtime_of


def _elsewhere() -> None:
    """The client's half of an actor: it is sent to, and runs in a worker."""


@contextmanager
def client(environment: dict[str, str], actors: Sequence[str]) -> Iterator[callboard.RabbitmqBroker]:
    """Makes a tracked broker Dramatiq's own, with these actors; closed with all that it opened."""
    broker = callboard.RabbitmqBroker(url=environment["AMQP_URL"], database_url=environment["DATABASE_URL"])
    before = dramatiq.broker.global_broker
    dramatiq.set_broker(broker)
    for name in actors:
        dramatiq.actor(actor_name=name, broker=broker)(_elsewhere)
    try:
        yield broker
    finally:
        runtime_of(broker).close()
        broker.close()
        dramatiq.broker.global_broker = before
