"""The drop-in for Dramatiq's RabbitmqBroker."""

import pytest

from callboard.middleware.rabbitmq.broker import RabbitmqBroker


def test_quorum_queues_with_priorities_are_refused_when_the_broker_is_made() -> None:
    """RabbitMQ would refuse each queue, once workers run."""
    with pytest.raises(ValueError, match="quorum queues take no max_priority"):
        RabbitmqBroker(url="amqp://nowhere.invalid", queue_type="quorum", max_priority=5)


def test_quorum_queues_are_declared_without_a_delivery_limit() -> None:
    broker = RabbitmqBroker(url="amqp://nowhere.invalid", queue_type="quorum", database_url="postgresql:///nowhere")
    arguments = broker._build_queue_arguments("default")
    assert (arguments["x-queue-type"], arguments["x-delivery-limit"]) == ("quorum", -1)
