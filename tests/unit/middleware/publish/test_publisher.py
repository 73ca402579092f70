"""The publisher's thread: it outlives what nobody thought of, and sends nothing of which it has no claim any more."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from callboard.middleware.process.outage import Outage
from callboard.middleware.publish import publisher as publisher_module
from callboard.middleware.publish.backlog import QueueBacklog, QueueBacklogs
from callboard.middleware.publish.publisher import Publisher
from callboard.middleware.publish.transport import Unreachable
from callboard.sql.rows import Outgoing
from callboard.sql.writes import publishing as publishing_writes
from tests.support.transports import StubTransport
from tests.support.workers import wait_until

TIMEOUT = 20.0
OUT = Outgoing(
    1, 0, 1, 0, suspect=False, actor="a", queue="q", message_id="m", args=b"{}", options=None, sent_ms=0, outbox=1
)  # fmt: skip


class NoDatabase:
    """Lends connections that nothing is asked of."""

    @contextmanager
    def connection(self) -> Iterator[None]:
        yield


class Line(StubTransport):
    """A way to a broker that may be away, and that can break while it is asked; `sent`: the items that it took."""

    def __init__(self) -> None:
        super().__init__()
        self.away = self.broken = False
        self.tries = 0
        self.sent: list[int] = []

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        self.sent += [out.item for out in batch]
        return super().publish(batch)

    def depth(self, queue: str) -> int | None:
        if self.broken:
            self.broken = False
            raise ZeroDivisionError
        return super().depth(queue)

    def serve(self, *, mend: bool = False) -> None:
        self.tries += 1
        if self.away:
            raise Unreachable("it is away")


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setattr(publisher_module, "PERIOD", 0.01)
    monkeypatch.setattr(publisher_module, "LOOK", 0.001)
    monkeypatch.setattr(publisher_module._complain, "_outage", Outage())
    monkeypatch.setattr(publishing_writes, "claim_outbox", lambda *_: [])
    monkeypatch.setattr(publishing_writes, "claim_bulk", lambda *_, **__: None)
    monkeypatch.setattr(publishing_writes, "settle_outbox", lambda *_: None)
    return Line()


def publishing(line: Line) -> Publisher:
    """A publisher that looks for work."""
    unused: Any = NoDatabase()
    publisher = Publisher(unused, line, QueueBacklogs(line))
    publisher.start()
    return publisher


def test_an_error_while_it_rests_does_not_end_it(line: Line) -> None:
    publisher = publishing(line)
    line.broken = True
    publisher.backlogs._backlogs["q"] = QueueBacklog(full_until=time.monotonic() + TIMEOUT)
    assert wait_until(lambda: not line.broken, TIMEOUT)
    tries = line.tries
    assert wait_until(lambda: line.tries > tries, TIMEOUT)
    assert publisher.close(TIMEOUT)


def test_what_waited_until_its_claim_may_have_lapsed_is_left_to_others(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They send it as one that may be a second copy. Sent from here, too, it would run unasked, and so twice."""
    monkeypatch.setattr(publisher_module, "FRESH", 0.05)
    line.away = True
    publisher = publishing(line)
    publisher.add(OUT)
    handed = time.monotonic()
    assert wait_until(lambda: time.monotonic() - handed > 0.05, TIMEOUT)
    publisher.add(replace(OUT, item=1))
    monkeypatch.setattr(publisher_module, "FRESH", TIMEOUT)
    line.away = False
    assert wait_until(lambda: 1 in line.sent, TIMEOUT)
    assert publisher.close(TIMEOUT)
    assert line.sent == [1]


def test_that_publishing_goes_on_is_said(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    line.away = True
    publisher = publishing(line)
    assert wait_until(lambda: "held up, trying on; nothing is lost: it is away" in caplog.text, TIMEOUT)
    assert "again" not in caplog.text
    line.away = False
    assert wait_until(lambda: "publishing goes on again, after" in caplog.text, TIMEOUT)
    assert publisher.close(TIMEOUT)
    assert len(caplog.messages) == 2


def test_who_only_sends_says_so_only_when_the_broker_took_something(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.away, line.trouble = True, "it is away"
    publisher = publishing(line)
    assert wait_until(lambda: "it is away" in caplog.text, TIMEOUT)
    line.away, tries = False, line.tries
    assert wait_until(lambda: line.tries > tries + 3, TIMEOUT)
    assert publisher.close(TIMEOUT)
    assert len(caplog.messages) == 1
