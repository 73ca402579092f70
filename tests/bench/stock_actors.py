"""The untracked side: stock Dramatiq on its own broker, with a prefetch as deep as the tracked side's may get."""

import os
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

broker = RabbitmqBroker(url=os.environ["AMQP_URL"], confirm_delivery=bool(os.environ.get("CONFIRM")))
dramatiq.set_broker(broker)
done = os.open(os.environ.get("DONE", os.devnull), os.O_WRONLY | os.O_APPEND)


@dramatiq.actor(max_retries=0)
def nothing(number: int) -> None:
    """The cheapest actor there is: what is measured is everything around it."""


@dramatiq.actor(max_retries=0)
def varied(seconds: float) -> None:
    """Take so long, and add a byte to the file DONE."""
    time.sleep(seconds)
    os.write(done, b".")
