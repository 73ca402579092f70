"""The leases of plain sends: when sends join one, when it is renewed, ended, or left to lapse; without a database."""

import math
import time
from collections.abc import Collection

import psycopg
import pytest

from callboard.middleware.publish import send_leases
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.publish.transport import Unreachable
from callboard.sql.pool import Conn
from callboard.sql.rows import Outgoing
from callboard.sql.writes import sends

OUT = Outgoing(
    1, 0, 1, 0, suspect=False, actor="a", queue="q", message_id="m", args=b"{}", options=None, sent_ms=0, lease=7
)
NONE: Conn = None  # type: ignore[assignment]


class Database:
    """Notes which leases are renewed and ended; `gone` are those that are there no more, `locked` those of others."""

    def __init__(self) -> None:
        self.renewed: list[int] = []
        self.ended: list[int] = []
        self.gone: set[int] = set()
        self.locked: set[int] = set()
        self.error: psycopg.Error | None = None

    def renew(self, _: Conn, leases: Collection[int]) -> list[int]:
        self.renewed += leases
        return [lease for lease in leases if lease not in self.gone]

    def end(self, _: Conn, leases: Collection[int]) -> list[int]:
        if self.error:
            raise self.error
        self.ended += set(leases) - self.locked
        return [lease for lease in leases if lease in self.locked]


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    played = Database()
    monkeypatch.setattr(sends, "renew_send_leases", played.renew)
    monkeypatch.setattr(sends, "end_send_leases", played.end)
    return played


@pytest.fixture
def leases() -> SendLeases:
    """Lease 7 of job 1, under which one message is to be published."""
    made = SendLeases()
    made.add(7, 1, time.monotonic())
    return made


def joined(leases: SendLeases, *jobs: int) -> list[int]:
    with leases.joining(set(jobs)) as found:
        return found


def grow_old(leases: SendLeases, seconds: float) -> None:
    """Let some seconds pass."""
    for lease in leases._leases.values():
        lease.opened -= seconds
        lease.renewed -= seconds
    leases._due -= seconds


def test_sends_join_the_lease_of_their_job_while_it_is_new(leases: SendLeases) -> None:
    assert (joined(leases, 1, 2), joined(leases, 2)) == ([7], [])
    grow_old(leases, send_leases.JOIN_SECONDS)
    assert joined(leases, 1) == []


def test_a_lease_ends_when_nothing_joins_it_and_all_is_published(database: Database, leases: SendLeases) -> None:
    leases.settle([OUT])
    leases.maintain(NONE)
    assert database.ended == []
    grow_old(leases, send_leases.JOIN_SECONDS)
    assert leases.due <= time.monotonic()
    leases.maintain(NONE)
    assert (database.ended, database.renewed, leases.due) == ([7], [], math.inf)


def test_a_lease_does_not_end_while_a_statement_may_store_something_under_it(
    database: Database, leases: SendLeases
) -> None:
    leases.settle([OUT])
    with leases.joining({1}):
        grow_old(leases, send_leases.JOIN_SECONDS)
        leases.maintain(NONE)
        assert database.ended == []
    leases.maintain(NONE)
    assert database.ended == [7]


def test_a_statement_that_waits_keeps_nobody_busy_with_the_lease_that_it_joins(
    database: Database, leases: SendLeases
) -> None:
    """Else the publisher looks again and again; and what is unpublished must be renewed meanwhile."""
    with leases.joining({1}):
        grow_old(leases, send_leases.JOIN_SECONDS)
        leases.maintain(NONE)
        assert database.renewed == [7]
        leases.settle([OUT])
        grow_old(leases, send_leases.JOIN_SECONDS)
        leases.maintain(NONE)
        assert leases.due > time.monotonic()
    assert database.ended == []


def test_a_lease_that_could_not_be_ended_is_ended_later(database: Database, leases: SendLeases) -> None:
    """It must not lapse: what waits under it would be sent a second time."""
    leases.settle([OUT])
    grow_old(leases, send_leases.JOIN_SECONDS)
    database.error = psycopg.OperationalError()
    with pytest.raises(psycopg.OperationalError):
        leases.maintain(NONE)
    database.error = None
    leases.maintain(NONE)
    assert database.ended == [7]


def test_a_lease_that_somebody_has_locked_is_ended_later(database: Database, leases: SendLeases) -> None:
    leases.settle([OUT])
    grow_old(leases, send_leases.JOIN_SECONDS)
    database.locked = {7}
    leases.maintain(NONE)
    assert time.monotonic() < leases.due <= time.monotonic() + send_leases.PAUSE_SECONDS
    database.locked = set()
    leases.maintain(NONE)
    assert (database.ended, leases.due) == ([7], math.inf)


def test_a_lease_is_renewed_while_something_is_unpublished(database: Database, leases: SendLeases) -> None:
    for _ in range(3):
        grow_old(leases, send_leases.JOIN_SECONDS)
        assert leases.due <= time.monotonic()
        leases.maintain(NONE)
        assert leases.held([OUT]) == [OUT]
        assert leases.due > time.monotonic()
    assert (database.renewed, database.ended) == ([7, 7, 7], [])


def test_what_was_sent_under_a_lease_that_is_gone_is_not_published_from_here(
    database: Database, leases: SendLeases
) -> None:
    database.gone = {7}
    grow_old(leases, send_leases.HOLD_SECONDS)
    leases.maintain(NONE)
    assert leases.held([OUT]) == []
    leases.maintain(NONE)
    assert (database.renewed, database.ended) == ([7], [])


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (psycopg.OperationalError("in the COMMIT"), True),
        (psycopg.errors.ProtocolViolation("server conn crashed?"), True),  # PgBouncer says so
        (psycopg.errors.ProtocolViolation("query_wait_timeout"), False),
        (psycopg.errors.LockNotAvailable(), False),
    ],
)
def test_a_lease_lapses_if_nobody_knows_what_was_stored_under_it(
    error: psycopg.OperationalError, lost: bool, database: Database, leases: SendLeases
) -> None:
    """The message may be stored, and its sender was told so: nobody here publishes it."""
    with pytest.raises(psycopg.OperationalError), leases.joining({1}):
        raise error
    leases.settle([OUT])
    assert joined(leases, 1) == ([] if lost else [7])
    leases.maintain(NONE, closing=True)
    assert database.ended == ([] if lost else [7])


@pytest.mark.parametrize("error", [ZeroDivisionError(), Unreachable("its sends are in the outbox")])
def test_a_lease_lapses_if_nobody_knows_what_was_published(
    error: Exception, database: Database, leases: SendLeases
) -> None:
    with pytest.raises(type(error)), leases.publishing([OUT]):
        raise error
    assert joined(leases, 1) == ([] if isinstance(error, ZeroDivisionError) else [7])


def test_a_lease_that_lapsed_is_forgotten(database: Database, leases: SendLeases) -> None:
    with pytest.raises(ZeroDivisionError), leases.publishing([OUT]):
        raise ZeroDivisionError
    grow_old(leases, 60.0)
    leases.maintain(NONE)
    assert (leases._leases, leases._newest, leases.due) == ({}, {}, math.inf)
    assert (database.ended, database.renewed) == ([], [])
