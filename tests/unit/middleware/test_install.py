"""What `install` says of a broker that nobody named."""

import json
from pathlib import Path

import pytest
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.install import make_broker
from callboard.middleware.ping import PING, add_ping
from callboard.sql.pool import broker_addresses


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


def test_the_ping_of_a_worker_declares_no_queue() -> None:
    broker = StubBroker()
    add_ping(broker)
    assert list(broker.actors) == [PING]
    assert broker.queues == {}
