"""What `install` says of a broker that nobody named, and what it lets a broker of an app's own do."""

import json
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker as StockRabbitmqBroker
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.install import install, make_broker
from callboard.middleware.ping import PING, add_ping
from callboard.middleware.spans import Spans
from callboard.sql.pool import broker_addresses
from callboard.sql.settings import NotConfigured


def test_a_broker_in_this_process_is_said_loudly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AMQP_URL", raising=False)
    assert isinstance(make_broker(), StubBroker)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("AMQP_URL is not set: messages stay in this process")


def test_the_broker_of_a_stack_that_runs_in_this_folder_goes_with_its_database_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AMQP_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / ".callboard").mkdir()
    (tmp_path / ".callboard" / "up.json").write_text(json.dumps({"amqp_url": "amqp://here/"}))
    assert broker_addresses() == "amqp://here/"
    assert broker_addresses("postgresql://elsewhere/") == ""
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/")
    assert broker_addresses() == ""
    monkeypatch.setenv("AMQP_URL", "amqp://named/")
    assert broker_addresses() == "amqp://named/"


def test_an_address_of_a_broker_that_cant_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://one;amqps://app:secret@two?cacertfile=ca.pem")
    with pytest.raises(NotConfigured, match=r"AMQP_URL: .*its parameter cacertfile can't be used") as refused:
        make_broker()
    assert "secret" not in str(refused.value)


def test_a_broker_with_one_channel_on_a_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://one;amqps://app:secret@two?channel_max=1")
    with pytest.raises(NotConfigured, match="RabbitMQ at one:5672 or two:5671 allows fewer than 2 channels"):
        make_broker("postgresql://elsewhere/")
    broker = StockRabbitmqBroker(host="one", channel_max=1)
    with pytest.raises(NotConfigured, match="raise channel_max"):
        install(broker, database_url="postgresql://elsewhere/")


@pytest.mark.parametrize(
    ("addresses", "warns"),
    [
        ("amqp://app:secret@elsewhere/", True),
        ("amqp://127.0.0.1:5673/", True),
        ("amqp://localhost/another", True),
        ("amqp://localhost", False),
        ("amqp://elsewhere;amqp://127.0.0.1:5672/%2F", False),
        ("no address", False),
        (None, False),
    ],
)
def test_the_default_broker_is_said_loudly_if_another_is_named(
    addresses: str | None, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Dramatiq makes it when an actor is declared before `install`."""
    monkeypatch.delenv("AMQP_URL", raising=False)
    if addresses is not None:
        monkeypatch.setenv("AMQP_URL", addresses)
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    dramatiq.get_broker()
    broker = install(database_url="postgresql://elsewhere/")
    install(database_url="postgresql://elsewhere/")
    broker.close()
    said = [r.getMessage() for r in caplog.records if r.name == "callboard"]
    assert len(said) == warns
    for text in said:
        assert "call callboard.install() before" in text
        assert "secret" not in text


def test_the_ping_of_a_worker_declares_no_queue() -> None:
    broker = StubBroker()
    add_ping(broker)
    assert list(broker.actors) == [PING]
    assert broker.queues == {}


class EagerBroker(StubBroker):
    """Runs an actor where it is sent, with the hooks of a worker, as brokers for tests do."""

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        proxy = MessageProxy(message)
        try:
            self.emit_before("process_message", proxy)
            self.emit_after("process_message", proxy, result=self.actors[message.actor_name](*message.args))
        except dramatiq.middleware.SkipMessage:
            self.emit_after("skip_message", proxy)
        for signal in ("nack", "ack"):
            self.emit_before(signal, proxy)
            self.emit_after(signal, proxy)
        return message


def test_a_broker_that_runs_actors_where_they_are_sent_is_let_alone(caplog: pytest.LogCaptureFixture) -> None:
    broker = install(EagerBroker(), database_url="postgresql://nobody@127.0.0.1:1/none")
    broker.add_middleware(Spans())
    ran = []

    @dramatiq.actor(broker=broker)
    def work(number: int) -> None:
        ran.append(number)
        if number == 0:
            raise dramatiq.middleware.SkipMessage("the last one")
        work.send(number - 1)

    work.send(2)
    assert ran == [2, 1, 0]
    assert caplog.records == []
    broker.close()
