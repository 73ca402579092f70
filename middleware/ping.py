"""An actor that every worker has: `callboard doctor` sends it a message to test a queue from end to end."""

from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

#: The name of the actor. No worker announces it, because it does not belong to the app.
PING = "callboard.ping"


def answer() -> str:
    """The function of the actor."""
    return "pong"


def add_ping(broker: dramatiq.Broker) -> None:
    """Let the broker's workers run pings. The actor is declared to a broker of its own. The app's broker would declare
    a queue for it, and announce it to the app's middleware and to other processes.
    """
    if PING in broker.actors:  # added by an earlier worker of this process
        return
    queue = next((actor.queue_name for actor in broker.actors.values()), "default")
    actor: dramatiq.Actor[..., Any] = dramatiq.Actor(
        answer, broker=StubBroker(), actor_name=PING, queue_name=queue, priority=0, options={"max_retries": 0}
    )
    actor.broker = broker
    broker.actors[PING] = actor
