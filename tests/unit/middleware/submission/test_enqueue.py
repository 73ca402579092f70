"""A sender is told what is known of its message."""

from concurrent.futures import Future

import psycopg
import pytest

from callboard.middleware.journal.journal import UncertainCommit
from callboard.middleware.submission import enqueue
from callboard.middleware.submission.enqueue import NotStored
from callboard.sql.rows import NewItem, Outgoing

ITEM = NewItem(0, "work", "default", "m1", b"{}", None, 0)
UNKNOWN = "unknown whether the message is recorded; if it is, it runs"
NOT_SENT = "was not sent, since it can't be recorded"


def send(stored: Future[Outgoing]) -> str:
    """The error of a send whose item is being stored."""
    with pytest.raises(NotStored) as caught:
        enqueue._send_now(ITEM, lambda _: stored)
    return str(caught.value)


def test_a_message_that_is_still_being_written_may_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueue, "SEND_SECONDS", 0.01)
    stored: Future[Outgoing] = Future()
    stored.set_running_or_notify_cancel()
    assert UNKNOWN in send(stored)


def test_a_message_that_is_taken_back_before_it_is_written_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueue, "SEND_SECONDS", 0.01)
    stored: Future[Outgoing] = Future()
    assert NOT_SENT in send(stored)
    assert stored.cancelled()


def test_a_process_that_c_code_has_forked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no thread that would store the message, and the database is not to blame."""
    monkeypatch.setattr(enqueue, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(enqueue, "_process", [-1])
    said = send(Future())
    assert "start uWSGI with enable-threads and py-call-uwsgi-fork-hooks" in said
    assert "DATABASE_URL" not in said


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UncertainCommit("the connection broke while it was committed"), UNKNOWN),
        (psycopg.OperationalError("no route"), NOT_SENT),
    ],
)
def test_an_error_says_whether_the_message_may_be_recorded(error: Exception, text: str) -> None:
    stored: Future[Outgoing] = Future()
    stored.set_exception(error)
    assert text in (said := send(stored))
    assert str(error) in said
