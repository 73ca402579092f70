"""An actor that every worker has, by which `callboard doctor` tries a queue from end to end."""

from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

#: Its name. No worker announces it: it is no actor of the app's.
PING = "callboard.ping"


def answer() -> str:
    """The function of the actor."""
    return "pong"


def add_ping(broker: dramatiq.Broker) -> None:
    """Let the broker's workers run pings. The actor is declared to a broker of its own: the app's would declare a queue
    for it, and tell the app's middleware and the other processes of an actor that is none of the app's.
    """
    if PING in broker.actors:  # of a worker before this one
        return
    queue = next((actor.queue_name for actor in broker.actors.values()), "default")
    actor: dramatiq.Actor[..., Any] = dramatiq.Actor(
        answer, broker=StubBroker(), actor_name=PING, queue_name=queue, priority=0, options={"max_retries": 0}
    )
    actor.broker = broker
    broker.actors[PING] = actor
