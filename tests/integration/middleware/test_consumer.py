"""A consumer's connection is opened again where that helps, and none is left open."""

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from dramatiq.errors import ConnectionClosed

import callboard
from callboard.middleware.process.outage import OutageLog, ThrottleFilter
from callboard.middleware.rabbitmq import consumer as consumer_module
from callboard.middleware.tracking import runtime_of
from tests.support.vhosts import Broker

NOWHERE = "postgresql://127.0.0.1:1/none"


@pytest.fixture
def tracked(broker: Broker) -> Iterator[callboard.RabbitmqBroker]:
    with broker.vhost() as url:
        made = callboard.RabbitmqBroker(url=url, database_url=NOWHERE)
        yield made
        runtime_of(made).close()
        made.close()


def test_a_queue_that_was_deleted_while_nobody_was_connected_is_declared_again(
    tracked: callboard.RabbitmqBroker,
) -> None:
    """For example by a node that lost its disk."""
    tracked.declare_queue("work", ensure=True)
    tracked.channel.queue_delete("work")
    with pytest.raises(ConnectionClosed, match="no queue 'work'"):
        tracked.consume("work")
    consumer: Any = tracked.consume("work", timeout=1)
    assert next(consumer) is None
    consumer.close()


def test_a_queue_that_was_declared_otherwise_is_why_its_jobs_stand_still(tracked: callboard.RabbitmqBroker) -> None:
    tracked.channel.queue_declare("work", durable=True)  # as an app without dead letters does
    consumers = runtime_of(tracked).consumers
    with pytest.raises(ConnectionClosed, match="PRECONDITION_FAILED"):
        tracked.consume("work")
    assert "RabbitMQ at 127.0.0.1:" in (why := consumers.why_cut_off() or "")
    assert "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'work'" in why
    tracked.channel.queue_delete("work")
    tracked.consume("work").close()
    assert consumers.why_cut_off() is None


@pytest.mark.parametrize("declared", [True, False])
def test_a_node_that_takes_connections_and_says_nothing_is_why_jobs_stand_still(
    declared: bool, tracked: callboard.RabbitmqBroker
) -> None:
    tracked.declare_queue("work", ensure=declared)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        tracked.parameters = pika.URLParameters(f"amqp://{place}?stack_timeout=0.2")
        with pytest.raises(ConnectionClosed, match="Timeout"):
            tracked.consume("work")
    assert f"RabbitMQ at {place}" in (runtime_of(tracked).consumers.why_cut_off() or "")


def test_a_channel_that_the_server_closes_is_noticed(tracked: callboard.RabbitmqBroker) -> None:
    """Also when nothing is to be acknowledged: RabbitMQ closes it when an item takes longer than half an hour."""
    tracked.declare_queue("work", ensure=True)
    consumer: Any = tracked.consume("work", timeout=1000)
    consumer.channel.basic_ack(5)
    with pytest.raises(ConnectionClosed, match="unknown delivery tag"):
        next(consumer)
    assert consumer.connection.is_closed
    with pytest.raises(ConnectionClosed):
        consumer.close()


def test_the_end_of_an_outage_is_logged_when_the_last_consumer_is_back(
    tracked: callboard.RabbitmqBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outage = OutageLog(logging.getLogger("callboard.test"), "", "messages come from %s again, after %.1f s")
    monkeypatch.setattr(consumer_module, "disconnected", outage)
    queues = ("one", "other")
    for queue in queues:
        tracked.declare_queue(queue, ensure=True)
    consumers: list[Any] = [tracked.consume(queue, timeout=1000) for queue in queues]
    for consumer in consumers:
        consumer.channel.basic_ack(5)
        with pytest.raises(ConnectionClosed) as error:
            next(consumer)
        line = logging.makeLogRecord({"msg": f"Consumer encountered a connection error: {error.value}"})
        ThrottleFilter(outage).filter(line)  # Dramatiq says so
    caplog.clear()
    said = []
    for queue in queues:
        consumers.append(tracked.consume(queue, timeout=1))
        said.append(len(caplog.messages))
    assert said == [0, 1]
    assert caplog.messages[0].startswith("messages come from RabbitMQ at 127.0.0.1:")
    for consumer in consumers[2:]:
        consumer.close()
