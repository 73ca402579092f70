"""What `install` says of a broker that nobody named."""

import pytest
from dramatiq.brokers.stub import StubBroker

from callboard.middleware.install import make_broker


def test_a_broker_in_this_process_is_said_loudly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AMQP_URL", raising=False)
    assert isinstance(make_broker(), StubBroker)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("AMQP_URL is not set: messages stay in this process")
