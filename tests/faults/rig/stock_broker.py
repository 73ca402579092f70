"""An actor on Dramatiq's own RabbitMQ broker, tracked."""

import os
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import callboard
from tests.faults.rig.run_log import logged_run

dramatiq.set_broker(RabbitmqBroker(url=os.environ["AMQP_URL"]))
callboard.install(dramatiq.get_broker())


@dramatiq.actor(max_retries=0)
def plain(number: int) -> None:
    """Take a moment."""
    with logged_run():
        time.sleep(0.02)
