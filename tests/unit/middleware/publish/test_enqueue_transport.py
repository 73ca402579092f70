"""How long the queues of brokers other than RabbitMQ's are."""

from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.publish.transport import EnqueueTransport, Unreachable


def depth(broker: Any, queue: str = "default") -> int | None:
    return EnqueueTransport(broker, print).depth(queue)


def test_the_length_of_a_queue_in_redis_is_that_of_its_list() -> None:
    """Not of its messages: those that a dead worker had in hand are among them."""
    lengths = {"dramatiq:default": 3}
    assert depth(SimpleNamespace(queues=set(), namespace="dramatiq", client=SimpleNamespace(llen=lengths.get))) == 3


def test_a_redis_that_is_away_is_unreachable() -> None:
    def llen(_: str) -> int:
        raise OSError("connection refused")

    broker = SimpleNamespace(queues=set(), namespace="dramatiq", client=SimpleNamespace(llen=llen))
    with pytest.raises(Unreachable, match="connection refused"):
        depth(broker)


def test_the_length_of_a_queue_in_process() -> None:
    broker = StubBroker()
    broker.declare_queue("default")
    broker.queues["default"].put(b"")
    assert (depth(broker), depth(broker, "other")) == (1, 0)


def test_another_broker_does_not_tell() -> None:
    assert depth(SimpleNamespace(queues=set())) is None
