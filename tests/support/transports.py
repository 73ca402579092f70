"""A transport to RabbitMQ, and one without a broker."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dramatiq.brokers.rabbitmq import RabbitmqBroker

from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.relay import Relay
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.publish.transport import Answer, Transport
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
from callboard.sql.rows import Outgoing


@contextmanager
def transport_to(url: str) -> Iterator[ConfirmingPublisher]:
    """A publisher on a virtual host."""
    stock = RabbitmqBroker(url=url)
    transport = ConfirmingPublisher(stock)
    yield transport
    transport.close()
    stock.close()


class StubTransport:
    """Takes every message and reports empty queues. `depth_calls` counts the questions."""

    trouble: str | None = None
    takes_chunks = False
    in_order = True
    while_waiting: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.depth_calls = 0

    def name(self) -> str | None:
        return None

    def gave_name(self, name: str) -> bool:
        return False

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        return [True] * len(batch)

    def depth(self, queue: str) -> int | None:
        self.depth_calls += 1
        return 0

    def serve(self, *, reconnect: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


def relay_to(transport: Transport) -> Relay:
    """A relay as a publisher has it."""
    return Relay(transport, QueueBacklogs(transport), SendLeases())
