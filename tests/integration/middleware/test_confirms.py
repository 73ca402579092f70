"""Publishing to RabbitMQ over a connection that stands still for a while."""

import gc
import threading
from collections.abc import Iterator
from select import select
from typing import Any
from urllib.parse import urlsplit

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from callboard.middleware.publish.transport import Unreachable
from callboard.middleware.rabbitmq import confirms as module
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
from callboard.sql.rows import Outgoing
from tests.faults.rig.proxy import Proxy, proxy
from tests.support.vhosts import Broker
from tests.support.workers import wait_until


@pytest.fixture
def line(broker: Broker) -> Iterator[tuple[Proxy, ConfirmingPublisher]]:
    with broker.vhost() as url:
        there = urlsplit(url)
        with proxy(("127.0.0.1", there.port or 5672)) as made:
            stock = RabbitmqBroker(url=url.replace(f":{there.port}", f":{made.port}"))
            stock.declare_queue("work", ensure=True)
            transport = ConfirmingPublisher(stock)
            yield made, transport
            transport.close()
            stock.close()


def test_a_late_answer_is_not_taken_for_the_answer_to_the_next_question(
    line: tuple[Proxy, ConfirmingPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended the wait for confirms, and the batch was published again as if RabbitMQ had confirmed nothing."""
    proxied, transport = line
    assert transport.depth("work") == 0
    goes_on = threading.Event()
    proxied.judge = lambda _: "pass" if goes_on.wait(20) else "before"
    with monkeypatch.context() as shorter:
        shorter.setattr(module, "CONFIRM_SECONDS", 0.1)
        with pytest.raises(Unreachable):
            transport.depth("work")
    gc.collect()  # reports a socket that was left open
    goes_on.set()
    if transport._connection is not None:
        socket: Any = transport._connection._transport._sock
        assert wait_until(lambda: bool(select([socket], [], [], 0)[0]), 20)  # here it is
    batch = [
        Outgoing(1, n, 1, 0, suspect=False, actor="a", queue="work", message_id=f"m{n}",
                 args=b'{"args":[],"kwargs":{}}', options=None, sent_ms=0, outbox=n)
        for n in range(50)
    ]  # fmt: skip
    assert transport.publish(batch) == [True] * 50
    assert transport.depth("work") == 50
