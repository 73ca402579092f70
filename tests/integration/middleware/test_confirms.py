"""Publishing to RabbitMQ: over a connection that stands still, and what RabbitMQ does not take."""

import gc
import os
import re
import resource
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from select import select
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from callboard.middleware.message import envelope
from callboard.middleware.publish.transport import Unpublishable, Unreachable
from callboard.middleware.rabbitmq import confirms as module
from callboard.middleware.rabbitmq.confirms import ConfirmingPublisher
from callboard.sql.rows import Outgoing
from tests.faults.rig.proxy import Proxy, proxy
from tests.support.tls import LOCALHOST
from tests.support.transports import transport_to
from tests.support.vhosts import Broker
from tests.support.workers import wait_until


def outgoing(item: int, queue: str = "work", message_id: str = "") -> Outgoing:
    """A message."""
    return Outgoing(
        1, item, 1, 0, suspect=False, actor="a", queue=queue, message_id=message_id or f"m{item}",
        args=b'{"args":[],"kwargs":{}}', options=None, sent_ms=0, outbox=item,
    )  # fmt: skip


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


def test_the_frames_of_a_batch_go_to_the_socket_together(
    line: tuple[Proxy, ConfirmingPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a message that is larger than what is gathered at a time."""
    _, transport = line
    transport.depth("work")  # connected
    large = replace(outgoing(30), args=b'{"args":["%s"],"kwargs":{}}' % (b"x" * 3 * module.GATHERED_BYTES))
    written: list[int] = []
    write = _AsyncPlaintextTransport.write

    def note(pika_transport: Any, data: bytes) -> None:
        written.append(len(data))
        write(pika_transport, data)

    monkeypatch.setattr(_AsyncPlaintextTransport, "write", note)
    assert transport.publish([*map(outgoing, range(30)), large, *map(outgoing, range(31, 40))]) == [True] * 40
    assert 2 <= len(written) < 10  # three frames a message at least
    assert max(written) < 4 * module.GATHERED_BYTES
    assert transport.depth("work") == 40


def test_a_batch_is_published_over_tls(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(LOCALHOST))
    with broker.vhost() as url:
        there = urlsplit(url)
        login = there.netloc.rpartition("@")[0]
        place = f"{login}@localhost:{broker.tls_port}"
        with transport_to(there._replace(scheme="amqps", netloc=place).geturl()) as transport:
            large = replace(outgoing(0), args=b'{"args":["%s"],"kwargs":{}}' % (b"x" * 50 * module.GATHERED_BYTES))
            assert transport.publish([large, *map(outgoing, range(1, 500))]) == [True] * 500
            assert transport.depth("work") == 500


def test_a_late_answer_is_not_taken_for_the_answer_to_the_next_question(
    line: tuple[Proxy, ConfirmingPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended the wait for confirms, and the batch was published again as if RabbitMQ had confirmed nothing."""
    proxied, transport = line
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # what an earlier test has left
    assert transport.depth("work") == 0
    goes_on = threading.Event()
    proxied.judge = lambda _: "pass" if goes_on.wait(300) else "before"
    with monkeypatch.context() as shorter:
        shorter.setattr(module, "CONFIRM_SECONDS", 0.1)
        with pytest.raises(Unreachable):
            transport.depth("work")
    gc.collect()  # reports a socket that was left open
    goes_on.set()
    if transport._connection is not None:
        socket: Any = transport._connection._transport._sock
        assert wait_until(lambda: bool(select([socket], [], [], 0)[0]), 300)  # here it is
    assert transport.publish([outgoing(n) for n in range(50)]) == [True] * 50
    assert transport.depth("work") == 50


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """In its block this process can open no file and no socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # all below it are in use
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(lowest)


def test_a_process_without_a_free_descriptor_publishes_on_and_connects_when_it_has_some(amqp_url: str) -> None:
    """The loop could not start once, and then never again: the publisher of that process published nothing more."""
    with transport_to(amqp_url) as transport:
        assert transport.publish([outgoing(0)]) == [True]
        with no_descriptor_left():
            assert transport.publish([outgoing(1)]) == [True]
        transport.close()
        with no_descriptor_left(), pytest.raises(Unreachable, match=r"^RabbitMQ at .+: .*Too many open files"):
            transport.publish([outgoing(2)])
        assert transport.publish([outgoing(2)]) == [True]
        assert transport.depth("work") == 3


def test_after_a_refusal_of_all_messages_another_connection_tries(amqp_url: str) -> None:
    """After a failover one node of a cluster refused each message, and another took them."""
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with transport_to(amqp_url) as transport, pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("full", durable=True, arguments=full)
        assert transport.publish([outgoing(0, "full")]) == [True]
        opened = transport._connection
        assert transport.publish([outgoing(1, "full")]) == [False]
        channel.queue_purge("full")
        assert transport.publish([outgoing(1, "full")]) == [True]
        assert transport._connection is not opened


def test_a_message_that_pika_cant_write_does_not_stop_the_others(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no delivery tag: counted, the next batch waited for a confirm that never came."""
    real = envelope.properties

    def properties(out: Outgoing) -> pika.BasicProperties:
        made = real(out)
        made.timestamp = -1 if out.item == 1 else 1
        return made

    monkeypatch.setattr(envelope, "properties", properties)
    monkeypatch.setattr(module, "CONFIRM_SECONDS", 60.0)
    with transport_to(amqp_url) as transport:
        assert transport.depth("work") == 0
        opened = transport._connection
        assert isinstance(transport.publish([outgoing(1)])[0], Unpublishable)
        assert transport._connection is opened  # nothing was refused
        answers = transport.publish([outgoing(n) for n in range(3)])
        assert (answers[0], answers[2]) == (True, True)
        assert isinstance(answers[1], Unpublishable)
        assert transport.publish([outgoing(n) for n in range(3, 6)]) == [True] * 3
        assert transport.depth("work") == 5


def test_messages_for_a_queue_that_the_user_may_not_declare_wait_and_the_others_do_not(
    broker: Broker, amqp_url: str
) -> None:
    parts = urlsplit(amqp_url)
    vhost = unquote(parts.path[1:])
    allowed = {"configure": "^open", "write": ".*", "read": ".*"}
    broker.request("PUT", f"users/{vhost}", {"password": "secret", "tags": ""})
    broker.request("PUT", f"permissions/{vhost}/{vhost}", allowed)
    url = urlunsplit(parts._replace(netloc=f"{vhost}:secret@{parts.hostname}:{parts.port}"))
    try:
        with transport_to(url) as transport:
            assert transport.depth("secret") == 0
            answers = transport.publish([outgoing(0, "secret"), outgoing(1, "open"), outgoing(2, "secret")])
            assert answers == [False, True, False]
            assert re.search("'secret' does not exist and can't be declared: .*ACCESS_REFUSED", transport.trouble or "")
            assert transport.publish([outgoing(3, "open")]) == [True]
            assert "'secret'" in (transport.trouble or "")
            broker.request("PUT", f"permissions/{vhost}/{vhost}", {**allowed, "configure": ".*"})
            assert transport.publish([outgoing(0, "secret")]) == [True]
            assert transport.trouble is None
    finally:
        broker.request("DELETE", f"users/{vhost}")


def test_a_node_that_allows_one_channel_is_named(amqp_url: str) -> None:
    with transport_to(f"{amqp_url}?channel_max=1") as transport, pytest.raises(Unreachable, match="raise channel_max"):
        transport.depth("work")


def test_a_queue_whose_name_is_too_long_does_not_stop_the_others(amqp_url: str) -> None:
    with transport_to(amqp_url) as transport:
        assert transport.depth("q" * 256) == 0
        answers = transport.publish([outgoing(0, "q" * 256), outgoing(1)])
        assert isinstance(answers[0], Unpublishable)
        assert answers[1] is True
        assert transport.depth("work") == 1


def test_a_message_whose_id_is_cut_reaches_a_queue_that_had_to_be_declared(amqp_url: str) -> None:
    """AMQP's ids have 255 bytes; by the whole id a returned message was taken for one that was delivered."""
    with transport_to(amqp_url) as transport:
        batch = [outgoing(n, message_id="m" * 300 + str(n)) for n in range(2)]
        assert transport.publish(batch) == [True, True]
        assert transport.depth("work") == 2


def test_a_process_that_ends_connects_without_a_new_thread(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on it can start none: what a short script has sent would come seconds late, from a worker."""
    with broker.vhost() as url, transport_to(url) as transport:
        transport._broker.declare_queue("work", ensure=True)
        monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread is started"))
        assert transport.publish([outgoing(1)]) == [True]


def test_a_name_that_is_no_hosts_is_an_outage_that_says_so() -> None:
    with (
        transport_to("amqp://nowhere.invalid:5672/") as transport,
        pytest.raises(Unreachable, match=r"nowhere\.invalid"),
    ):
        transport.publish([outgoing(1)])
