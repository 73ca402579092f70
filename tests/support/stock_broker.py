"""The actors of the pipeline tests on Dramatiq's own broker, tracked by the one line."""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import callboard

dramatiq.set_broker(callboard.install(RabbitmqBroker(url=os.environ["AMQP_URL"])))

from tests.support import pipeline_actors  # noqa: E402

__all__ = ["pipeline_actors"]
