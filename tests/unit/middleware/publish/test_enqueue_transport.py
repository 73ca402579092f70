"""What brokers other than RabbitMQ's tell: how long their queues are, and of which kind they are."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.publish.transport import EnqueueTransport, Unreachable


class Redis:
    """Stands for Dramatiq's class, which takes Redis's client."""

    namespace = "dramatiq"

    def __init__(self, llen: Callable[[str], int]) -> None:
        self.queues = set[str]()
        self.client = SimpleNamespace(llen=llen)


@pytest.fixture(autouse=True)
def dramatiqs(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = SimpleNamespace(RedisBroker=Redis)
    monkeypatch.setitem(sys.modules, "dramatiq.brokers.redis", module)


def depth(broker: Any, queue: str = "default") -> int | None:
    return EnqueueTransport(broker, print).depth(queue)


def test_the_length_of_a_queue_in_redis_is_that_of_its_list() -> None:
    """Not of its messages: those that a dead worker had in hand are among them."""
    assert depth(Redis({"dramatiq:default": 3}.__getitem__)) == 3


def test_a_redis_that_is_away_is_unreachable() -> None:
    def llen(_: str) -> int:
        raise OSError("connection refused")

    with pytest.raises(Unreachable, match="connection refused"):
        depth(Redis(llen))


def test_the_length_of_a_queue_in_process() -> None:
    broker = StubBroker()
    broker.declare_queue("default")
    broker.queues["default"].put(b"")
    assert (depth(broker), depth(broker, "other")) == (1, 0)


#: Brokers of other packages, which keep in `queues` what they like.
OTHERS: list[Any] = [
    SimpleNamespace(queues=set(), client=None), SimpleNamespace(queues={"default": True}), SimpleNamespace(queues={}),
]  # fmt: skip


@pytest.mark.parametrize("broker", OTHERS)
def test_another_broker_does_not_tell(broker: Any) -> None:
    assert depth(broker) is None


def test_brokers_of_different_kinds_have_different_names() -> None:
    """A worker on a database of workers with another broker is refused by it."""
    brokers: list[Any] = [StubBroker(), Redis(len), *OTHERS]
    inside, redis, *others = (EnqueueTransport(broker, print) for broker in brokers)
    assert (inside.name(), redis.name()) == ("a broker within its process", "Redis")
    assert {other.name() for other in others} == {None}
    assert inside.gave_name("a broker within its process")
    assert not inside.gave_name("rabbit@here, virtual host /")
