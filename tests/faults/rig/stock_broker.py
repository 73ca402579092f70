"""An actor on Dramatiq's own RabbitMQ broker, tracked."""

import os
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import callboard
from tests.faults.rig.run_log import logged_run

dramatiq.set_broker(RabbitmqBroker(url=os.environ["AMQP_URL"]))
callboard.install(dramatiq.get_broker())


@dramatiq.actor(max_retries=0)
def plain(number: int, gate: str = "") -> None:
    """Wait until the file `gate` is there, if one is named."""
    with logged_run():
        while gate and not Path(gate).exists():
            time.sleep(0.02)
