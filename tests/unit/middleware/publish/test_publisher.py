"""The publisher's thread: it survives unexpected errors, and publishes nothing whose claim may have expired."""

import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from callboard.middleware.process import outage
from callboard.middleware.publish import publisher as publisher_module
from callboard.middleware.publish import send_leases
from callboard.middleware.publish.backlog import QueueBacklog, QueueBacklogs
from callboard.middleware.publish.publisher import Publisher
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.publish.transport import Answer, Unreachable
from callboard.sql.rows import Outgoing
from callboard.sql.writes import publishing as publishing_writes
from callboard.sql.writes import sends
from tests.support.process_parts import process_without_database
from tests.support.transports import StubTransport
from tests.support.workers import wait_until

TIMEOUT = 300.0
OUT = Outgoing(
    1, 0, 1, 0, suspect=False, actor="a", queue="q", message_id="m", args=b"{}", options=None, sent_ms=0, lease=1
)


class FlakyTransport(StubTransport):
    """A broker that may be away, and whose connection can break while it is asked. `sent` has the items it took."""

    def __init__(self) -> None:
        super().__init__()
        self.away = self.broken = False
        self.error: BaseException = ZeroDivisionError()
        self.tries = 0
        self.sent: list[int] = []

    def publish(self, batch: Sequence[Outgoing]) -> list[Answer]:
        self.sent += [out.item for out in batch]
        return super().publish(batch)

    def depth(self, queue: str) -> int | None:
        if self.broken:
            self.broken = False
            raise self.error
        return super().depth(queue)

    def serve(self, *, reconnect: bool = False) -> None:
        self.tries += 1
        if self.away:
            raise Unreachable("it is away")


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> FlakyTransport:
    monkeypatch.setattr(publisher_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(publisher_module, "FULL_QUEUE_POLL_SECONDS", 0.001)
    monkeypatch.setattr(publisher_module._log_outage, "_logged_at", -math.inf)
    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", TIMEOUT)
    monkeypatch.setattr(publishing_writes, "due_queues", lambda *_: [])
    monkeypatch.setattr(sends, "end_send_leases", lambda *_: [])
    monkeypatch.setattr(sends, "renew_send_leases", lambda _, leases: list(leases))
    return FlakyTransport()


def start_publisher(transport: FlakyTransport) -> Publisher:
    """A publisher that polls for work."""
    publisher = Publisher(process_without_database(), transport, QueueBacklogs(transport), SendLeases())
    publisher.start()
    return publisher


def add(publisher: Publisher, out: Outgoing) -> None:
    """Publish a message that was stored a moment ago."""
    publisher.leases.add(out.lease, out.job, time.monotonic())
    publisher.add(out)


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit("as the text of an exception may")])
def test_an_error_between_two_rounds_does_not_end_it(transport: FlakyTransport, error: BaseException) -> None:
    publisher = start_publisher(transport)
    transport.error, transport.broken = error, True
    publisher.backlogs._backlogs["q"] = QueueBacklog(full_until=time.monotonic() + TIMEOUT)
    assert wait_until(lambda: not transport.broken, TIMEOUT)
    tries = transport.tries
    assert wait_until(lambda: transport.tries > tries, TIMEOUT)
    assert publisher.close(TIMEOUT)


def test_a_message_whose_lease_may_have_lapsed_is_left_to_others(
    transport: FlakyTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They send it as suspect. A copy from here would not be suspect, so the item could run twice."""
    monkeypatch.setattr(send_leases, "HOLD_SECONDS", TIMEOUT)
    monkeypatch.setattr(sends, "renew_send_leases", lambda *_: [])
    publisher = start_publisher(transport)
    publisher.leases.add(2, 2, time.monotonic() - TIMEOUT - 1)  # its COMMIT took that long
    publisher.add(replace(OUT, item=1, lease=2))
    add(publisher, replace(OUT, item=2))
    publisher.add(replace(OUT, item=3, lease=3))  # it lapsed, and is forgotten
    assert wait_until(lambda: 2 in transport.sent and not publisher._added, TIMEOUT)
    assert publisher.close(TIMEOUT)
    assert transport.sent == [2]


def test_what_is_being_published_is_out_when_a_queue_is_forgotten(
    transport: FlakyTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it gets into the queue after that was purged, and stays there."""
    entered, forgotten = threading.Event(), threading.Event()
    early: list[bool] = []

    def publish(batch: Sequence[Outgoing]) -> list[Answer]:
        entered.set()
        early.append(forgotten.wait(0.1))
        return [True] * len(batch)

    monkeypatch.setattr(transport, "publish", publish)
    publisher = start_publisher(transport)
    add(publisher, OUT)
    assert entered.wait(TIMEOUT)
    publisher.forget("q")
    forgotten.set()
    assert publisher.close(TIMEOUT)
    assert early == [False]


def test_the_end_of_an_outage_is_logged(transport: FlakyTransport, caplog: pytest.LogCaptureFixture) -> None:
    transport.away = True
    publisher = start_publisher(transport)
    assert wait_until(lambda: "it is tried again, and nothing is lost: it is away" in caplog.text, TIMEOUT)
    assert "goes on again" not in caplog.text
    transport.away = False
    assert wait_until(lambda: "publishing goes on again, after" in caplog.text, TIMEOUT)
    assert publisher.close(TIMEOUT)
    assert len(caplog.messages) == 2


def test_an_outage_of_a_process_that_only_sends_ends_when_the_broker_takes_a_message(
    transport: FlakyTransport, caplog: pytest.LogCaptureFixture
) -> None:
    transport.away, transport.trouble = True, "it is away"
    publisher = start_publisher(transport)
    assert wait_until(lambda: "it is away" in caplog.text, TIMEOUT)
    transport.away, tries = False, transport.tries
    assert wait_until(lambda: transport.tries > tries + 3, TIMEOUT)
    assert publisher.close(TIMEOUT)
    assert len(caplog.messages) == 1


def test_a_round_that_does_not_end_is_the_trouble_of_its_process(
    transport: FlakyTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, let_go = threading.Event(), threading.Event()

    def stand(_batch: Sequence[Outgoing]) -> list[Answer]:
        entered.set()
        let_go.wait(TIMEOUT)
        return [True]

    monkeypatch.setattr(transport, "publish", stand)
    publisher = start_publisher(transport)
    assert not publisher.trouble
    add(publisher, OUT)
    assert entered.wait(TIMEOUT)
    monkeypatch.setattr(publisher_module, "STANDSTILL_SECONDS", 0.1)
    found = r"its publisher has stood still for \d+ s, at .*test_publisher.py:\d+ in stand"
    assert wait_until(lambda: bool(re.fullmatch(found, publisher.trouble or "")), TIMEOUT)
    let_go.set()
    assert wait_until(lambda: not publisher.trouble, TIMEOUT)
    assert publisher.close(TIMEOUT)
