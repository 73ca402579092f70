"""A node that can't be asked is an error that says why."""

import pika
import pytest

from callboard.middleware.rabbitmq.queue_admin import NoAnswer, connect_advice, connected, with_depths


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_host_with_no_possible_name_gives_no_answer(host: str) -> None:
    with pytest.raises(NoAnswer, match=host), connected(f"amqp://{host}"):
        pass


@pytest.mark.parametrize("host", ["[::1]:1", "a..b:1"])
def test_the_queues_of_a_node_that_cant_be_asked_are_unknown(host: str) -> None:
    (queue,), trouble = with_depths(f"amqp://{host}", [{"name": "default"}])
    assert queue["ready"] is None
    assert trouble is not None
    assert trouble.startswith(f"RabbitMQ at {host}: ")


def test_what_to_do_about_a_node_that_takes_no_more_connections() -> None:
    refused = "(530) \"NOT_ALLOWED - access to vhost 'jobs' refused for user 'app': connection limit (3) is reached\""
    assert connect_advice(NoAnswer(refused)) == "close connections of others, or raise that limit"
    assert connect_advice(NoAnswer("[Errno 111] Connection refused")) == "start it, or correct AMQP_URL"


def test_a_node_is_asked_once_however_many_tries_its_address_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def refuse(parameters: pika.URLParameters) -> None:
        asked.append(parameters.connection_attempts)
        raise pika.exceptions.AMQPConnectionError

    monkeypatch.setattr(pika, "BlockingConnection", refuse)
    with pytest.raises(NoAnswer), connected("amqp://one.example?connection_attempts=100&retry_delay=5"):
        pass
    assert asked == [1]
