"""What brokers other than RabbitMQ's tell: how long their queues are, and of which kind they are."""

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


def test_brokers_of_different_kinds_have_different_names() -> None:
    """A worker on a database of workers with another broker is refused by it."""
    brokers: list[Any] = [StubBroker(), SimpleNamespace(queues=set(), client=None), SimpleNamespace(queues=set())]
    inside, redis, other = (EnqueueTransport(broker, print) for broker in brokers)
    assert (inside.name(), redis.name(), other.name()) == ("a broker within its process", "Redis", None)
    assert inside.gave_name("a broker within its process")
    assert not inside.gave_name("rabbit@here, virtual host /")
