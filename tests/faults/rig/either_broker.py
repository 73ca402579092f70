"""The same actor on Dramatiq's own broker, tracked or as it is, or on ours: their consumers can be compared."""

import os
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import callboard
from tests.faults.rig.run_log import log_begin

STOCK = "CALLBOARD_TEST_STOCK"

stock = os.environ.get(STOCK)
if stock:
    dramatiq.set_broker(RabbitmqBroker(url=os.environ["AMQP_URL"]))
if stock != "as it is":
    callboard.install(dramatiq.get_broker() if stock else None)


@dramatiq.actor(max_retries=0)
def note(number: int, gate: str | None = None) -> None:
    """Note the run as it begins, under job 0; then wait until the gate is there, if there is to be one."""
    log_begin(0, number, 1)
    while gate is not None and not Path(gate).exists():
        time.sleep(0.02)
