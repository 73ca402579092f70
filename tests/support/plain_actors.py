"""An app that knows nothing of Callboard: stock Dramatiq and one actor that writes its pid to a file."""

import os
from pathlib import Path

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

broker = RabbitmqBroker(url=os.environ["AMQP_URL"])
dramatiq.set_broker(broker)


@dramatiq.actor
def note_pid(path: str) -> None:
    Path(path).write_text(str(os.getpid()), encoding="ascii")
