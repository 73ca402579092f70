"""Publishing to RabbitMQ: which messages it reports as confirmed, and what it leaves open."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from callboard.commands.services.ports import free_ports
from callboard.middleware.publish.transport import Unreachable
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
from callboard.sql.rows import Outgoing

#: The files that this process has open.
OPEN = Path("/proc/self/fd")


def outgoing(item: int, queue: str) -> Outgoing:
    """A message of the outbox."""
    return Outgoing(
        1, item, 1, 0, suspect=False, actor="a", queue=queue, message_id=f"m-{item}", args=b"{}", options=None,
        sent_ms=0, outbox=item,
    )  # fmt: skip


def test_confirms_of_a_second_try_are_merged_with_those_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of three queues are missing; the connection breaks when the second try has confirmed only the last."""
    transport = ConfirmingPublisher(RabbitmqBroker(url="amqp://nobody"))
    batch = [outgoing(0, "one"), outgoing(1, "two"), outgoing(2, "three")]

    def send(tried: Sequence[Outgoing]) -> list[bool]:
        if len(tried) == 3:
            transport._returned = [("m-1", "two"), ("m-2", "three")]
            return [True, False, False]
        raise Unreachable("gone", [False, True])

    monkeypatch.setattr(transport, "_send", send)
    monkeypatch.setattr(transport, "_declare", lambda _: None)
    with pytest.raises(Unreachable, match="gone") as caught:
        transport.publish(batch)
    assert caught.value.confirmed == [True, False, True]


@contextmanager
def no_garbage() -> Iterator[None]:
    """A file that is not closed stays open."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_nodes_that_are_away_leave_no_socket_open() -> None:
    nodes = [pika.ConnectionParameters("127.0.0.1", port) for port in free_ports(3)]
    transport = ConfirmingPublisher(
        RabbitmqBroker(parameters=[{"host": n.host, "port": n.port} for n in nodes])
    )
    with no_garbage():
        before = None
        for _ in range(4):
            with pytest.raises(Unreachable):
                transport.depth("default")
            before = before or sum(1 for _ in OPEN.iterdir())
        assert sum(1 for _ in OPEN.iterdir()) == before
    transport.close()
