"""The log lines of an outage and of its end."""

import logging
from types import SimpleNamespace

import pika
import pytest

from callboard.middleware.process import outage
from callboard.middleware.process.outage import OutageLog, reason

REFUSED = ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no"), "no"),
        (TimeoutError(), "TimeoutError"),
        (pika.exceptions.AMQPConnectionError(REFUSED), "[Errno 111] Connection refused"),
        (
            pika.adapters.utils.connection_workflow.AMQPConnectionWorkflowFailed(
                [pika.adapters.utils.connection_workflow.AMQPConnectorSocketConnectError(REFUSED)]
            ),
            "[Errno 111] Connection refused",
        ),
    ],
)
def test_the_reason_is_that_of_the_innermost_error(error: BaseException, said: str) -> None:
    assert reason(error) == said


class Clock:
    """Stands still."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(outage, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def away(clock: Clock, caplog: pytest.LogCaptureFixture) -> OutageLog:
    caplog.set_level(logging.INFO)
    return OutageLog(logging.getLogger("callboard.test"), "away: %s", "back after %.1f s")


def test_an_outage_is_logged_once_and_so_is_its_end(away: OutageLog, caplog: pytest.LogCaptureFixture) -> None:
    away.over()
    for _ in range(3):
        away(REFUSED)
    for _ in range(3):
        away.over()
    assert caplog.messages == [f"away: {REFUSED}", "back after 0.0 s"]


def test_the_end_of_an_outage_that_was_not_logged_is_not_logged(
    away: OutageLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three outages in a row only the first is logged."""
    for _ in range(3):
        away(REFUSED)
        away.over()
    assert caplog.messages == [f"away: {REFUSED}", "back after 0.0 s"]


def test_an_outage_is_as_long_as_from_its_first_error(
    away: OutageLog, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    away(REFUSED)
    away.over()
    for seconds in range(1, 31):
        clock.now = 1000.0 + seconds
        away(REFUSED)
    away.over()
    assert caplog.messages == [f"away: {REFUSED}", "back after 0.0 s", *[f"away: {REFUSED}"] * 6, "back after 29.0 s"]
