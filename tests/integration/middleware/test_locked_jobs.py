"""Nobody holds others up for long: outcomes of a job that is locked wait alone, and a frozen client loses its locks."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from callboard.middleware.attempts.claim import ItemLocked, claim
from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.attempts.parking import Parking, retry_moved_back
from callboard.middleware.journal import journal as module
from callboard.middleware.journal.journal import Entry, Journal
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.consumers import Consumers
from callboard.middleware.message.delivery import Delivery
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.process import outage
from callboard.middleware.process.heartbeat import Heartbeat
from callboard.middleware.publish.relay import LOCKED_JOB_LOOKS
from callboard.sql import timings
from callboard.sql.pool import Conn, connect, transaction
from callboard.sql.reads import queries
from callboard.sql.rows import DueWork, Event
from callboard.sql.writes import actions, claims, jobs, outcomes, publishing, submission, sweep, workers
from callboard.sql.writes.requests import Requester
from tests.support.databases import waits
from tests.support.deliveries import Delivered, RecordedAcks, make_attempt
from tests.support.jobs import claim_outbox, make_job, make_worker, record
from tests.support.process_parts import RecordedAttempts, process_on
from tests.support.transports import StubTransport, relay_to
from tests.support.workers import wait_until

LOCK_JOB = "SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE"
LOCK_ITEM = "SELECT FROM callboard.items WHERE job_id = %s AND item = 0 FOR UPDATE"
LOCK_WORKER = "SELECT FROM callboard.workers WHERE id = %s FOR UPDATE"
LOCK_RUNNING = "SELECT FROM callboard.running WHERE job_id = %s FOR UPDATE"
LOCK_TURNS = "SELECT FROM callboard.turns WHERE job_id = %s FOR UPDATE"
LAPSE = "UPDATE callboard.jobs SET sealed = false, submitting_until = now() - interval '1 s' WHERE id = ANY (%s)"
SLOW = 300.0
#: Stops itself in a transaction that holds a job.
FROZEN = """
import os, signal, sys
from callboard.sql.pool import connect, transaction
with connect(sys.argv[1]) as conn, transaction(conn):
    conn.execute("SELECT FROM callboard.jobs WHERE id = " + sys.argv[2] + " FOR UPDATE")
    os.kill(os.getpid(), signal.SIGSTOP)
    conn.execute("SELECT 1")
"""


@contextmanager
def locked(url: str, row: str, job: int) -> Iterator[Conn]:
    """Another session holds a row."""
    with connect(url) as other, other.transaction():
        other.execute(row, (job,))
        yield other


@contextmanager
def journal_on(url: str) -> Iterator[tuple[Journal, RecordedAttempts]]:
    with process_on(url) as process:
        attempts = RecordedAttempts()
        yield Journal(process, attempts, lambda *_: None), attempts


def end(journal: Journal, job: int, item: int) -> None:
    event = Event(job, item, 1, "succeeded", 0.1, time.monotonic(), 1)
    journal.add(Entry(make_attempt(job, item, ended=True), event, dead_letter=False))


def succeeded(conn: Conn, job: int) -> int:
    return int((queries.run(conn, queries.job(job)) or {})["succeeded"])


@pytest.mark.parametrize("row", [LOCK_JOB, LOCK_ITEM])
def test_outcomes_of_other_jobs_are_recorded_while_a_job_is_locked(
    row: str, conn: Conn, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 0.0)
    held, other = make_job(conn, 3), make_job(conn, 3)
    caplog.set_level(logging.WARNING)
    with journal_on(database_url) as (journal, attempts):
        with locked(database_url, row, held):
            for job in (held, other):
                end(journal, job, 0)
            assert wait_until(lambda: succeeded(conn, other) == 1, SLOW)
            assert f"job {held} is locked, perhaps by process" in caplog.text
            end(journal, held, 1)
            end(journal, other, 1)
            assert wait_until(lambda: succeeded(conn, other) == 2, SLOW)
            assert wait_until(lambda: len(attempts.acknowledged) == 2, SLOW)
            assert journal.pending == 2
            assert "of callboard on" in caplog.text
            assert "idle in transaction for" in caplog.text
            assert succeeded(conn, held) == 0
        assert wait_until(lambda: journal.pending == 0, SLOW)
        assert journal.close(SLOW)
    assert succeeded(conn, held) == succeeded(conn, other) == 2
    assert "the outcomes that waited for a lock are recorded" in caplog.text


def test_a_job_that_is_locked_at_each_look_is_tried_all_the_same(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many processes that want the same row leave no moment in which it is free."""
    job = make_job(conn, 1)
    monkeypatch.setattr(outcomes, "locked_jobs", lambda *_: {job})
    monkeypatch.setattr(module, "LOCKED_RETRY_SECONDS", 0.5)
    with journal_on(database_url) as (journal, _):
        with locked(database_url, LOCK_JOB, job):
            end(journal, job, 0)
            assert wait_until(lambda: bool(journal._locked), SLOW)
        assert wait_until(lambda: succeeded(conn, job) == 1, SLOW)
        assert journal.close(SLOW)


@pytest.mark.parametrize("row", [LOCK_JOB, LOCK_ITEM])
def test_an_item_in_flight_that_is_locked_holds_up_no_outcome(row: str, conn: Conn, database_url: str) -> None:
    """Its row in `running` and the start of its job are told when nobody holds them any more."""
    held, other = make_job(conn, 1), make_job(conn, 1)
    slow = make_attempt(held, 0, started=time.monotonic() - 1)
    told = "SELECT (SELECT count(*) FROM callboard.running), (SELECT state::text FROM callboard.jobs WHERE id = %s)"
    with journal_on(database_url) as (journal, attempts):
        attempts.attempts = lambda: [slow]  # type: ignore[method-assign]
        with locked(database_url, row, held):
            journal.watch()
            assert wait_until(lambda: slow.running, SLOW)  # the look that tells of it has begun
            end(journal, other, 0)
            assert wait_until(lambda: succeeded(conn, other) == 1, 60)
            assert not slow.reported
        assert wait_until(lambda: conn.execute(told, (held,)).fetchone() == (1, "running"), SLOW)
        assert wait_until(lambda: slow.reported, SLOW)
        assert journal.close(SLOW)


def test_a_journal_that_closes_waits_for_a_locked_job(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 1)
    written = []
    with journal_on(database_url) as (journal, attempts):
        with locked(database_url, LOCK_JOB, job):
            end(journal, job, 0)
            journal.when_written(lambda: written.append(len(attempts.acknowledged)))
            assert not journal.close(1.5)
            assert written == []
        assert journal.close(SLOW)
    assert succeeded(conn, job) == 1
    assert written == [1]


def test_what_is_published_of_a_locked_job_is_settled_though_the_connection_was_lost_meanwhile(
    conn: Conn, database_url: str
) -> None:
    """Until it is settled the publisher passes the job over: forgotten, the job would stand still."""
    relay = relay_to(StubTransport())
    job = make_job(conn, 1)
    record(conn, job, {"retrying": [0]}, delay=0.0)
    batch = claim_outbox(conn, 10)
    with locked(database_url, LOCK_JOB, job):
        assert relay.publish_outbox(conn, batch) == 1
    with connect(database_url) as lost:
        lost.close()
        with pytest.raises(psycopg.OperationalError):
            relay.settle(lost)
    assert relay.settle_at < math.inf
    relay.settle(conn)
    assert conn.execute("SELECT FROM callboard.outbox").rowcount == 0
    assert relay.settle_at == math.inf


@pytest.mark.parametrize("row", [LOCK_JOB, LOCK_ITEM])
def test_what_is_published_of_a_locked_job_is_settled_later(row: str, conn: Conn, database_url: str) -> None:
    """The publisher goes on with other jobs, and nobody publishes the messages of that job again."""
    relay = relay_to(StubTransport())
    held, other = (make_job(conn, 1, name=name) for name in ("held", "other"))
    for job in (held, other):
        record(conn, job, {"retrying": [0]}, delay=0.0)
    left = "SELECT job_id, claimed_until >= %s + interval '8 s' FROM callboard.outbox"
    batch = claim_outbox(conn, 10)
    with locked(database_url, row, held):
        assert relay.publish_outbox(conn, batch) == 2
        conn.execute("UPDATE callboard.outbox SET claimed_until = now() + interval '1 s'")
        assert relay.settle_at < math.inf
        before = conn.execute("SELECT now()").fetchone()
        relay.settle(conn)
        assert conn.execute(left, before).fetchall() == [(held, True)]
        assert queries.run(conn, queries.job(other))["queued"] == 1  # type: ignore[index]
    relay.settle(conn)
    assert conn.execute(left, before).fetchall() == []
    assert relay.settle_at == math.inf
    assert queries.run(conn, queries.verify())["drift"] == []


def test_a_job_that_is_passed_over_keeps_no_other_from_being_looked_at_again(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of outcomes locks a job many times a second: the next look may find it free. A job that waits to be
    settled is not looked at meanwhile.
    """
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    relay = relay_to(StubTransport())
    held, other = make_job(conn, 2, published=1), make_job(conn, 1, published=0)
    record(conn, held, {"retrying": [0]}, delay=0.0)
    with locked(database_url, LOCK_JOB, held):
        with locked(database_url, LOCK_JOB, other):
            looks = 1
            while relay.publish_due(conn):
                looks += 1
            assert looks == LOCKED_JOB_LOOKS
        assert relay.publish_due(conn) is True
        assert queries.run(conn, queries.job(other))["queued"] == 1  # type: ignore[index]
        assert relay.publish_due(conn) is False
    assert relay.publish_job(conn, held, []) is None
    relay.settle(conn)
    assert relay.publish_due(conn) is True
    assert queries.run(conn, queries.job(held))["queued"] == 2  # type: ignore[index]


def test_a_lock_that_is_let_go_at_once_keeps_no_publisher_busy(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to settle later, so nothing to look at again and again."""
    relay = relay_to(StubTransport())
    record(conn, make_job(conn, 1), {"retrying": [0]}, delay=0.0)
    confirm, tries = publishing.confirm_outbox, iter([psycopg.errors.LockNotAvailable()])

    def confirm_later(*given: Any) -> None:
        for error in tries:
            raise error
        confirm(*given)

    monkeypatch.setattr(publishing, "confirm_outbox", confirm_later)
    assert relay.publish_outbox(conn, claim_outbox(conn, 10)) == 1
    assert conn.execute("SELECT FROM callboard.outbox").fetchall() == []
    assert relay.settle_at == math.inf


@pytest.mark.parametrize("row", [LOCK_JOB, LOCK_ITEM])
def test_messages_of_a_locked_job_hold_up_no_other_that_is_parked(row: str, conn: Conn, database_url: str) -> None:
    held, other = make_job(conn, 1), make_job(conn, 1)
    acks = RecordedAcks()
    with process_on(database_url) as process:
        parking = Parking(process, claims.park, lambda: None)
        with locked(database_url, row, held):
            for tag, job in enumerate((held, other)):
                parking.park(Attempt(job, 0, 1, [Delivery(acks, tag, None)], {}))
            assert wait_until(lambda: acks.acknowledged == [1], 60)
            assert wait_until(lambda: [attempt.job for attempt in parking.put_off] == [held], SLOW)
        assert wait_until(lambda: acks.acknowledged == [1, 0], SLOW)


@pytest.mark.parametrize("row", [LOCK_JOB, LOCK_ITEM])
def test_a_dead_letter_moved_back_to_a_locked_job_waits_for_it_and_is_no_dead_letter_again(
    row: str, conn: Conn, database_url: str
) -> None:
    held, other = make_job(conn, 1), make_job(conn, 1)
    acks = RecordedAcks()
    for job in (held, other):
        record(conn, job, {"failed": [0]})
    with process_on(database_url) as process:
        parking = Parking(process, retry_moved_back, lambda: None)
        with locked(database_url, row, held):
            for tag, job in enumerate((held, other)):
                parking.park(Attempt(job, 0, 1, [Delivery(acks, tag, None)], {}))
            assert wait_until(lambda: acks.acknowledged == [1], SLOW)
            assert wait_until(lambda: [attempt.job for attempt in parking.put_off] == [held], SLOW)
        assert wait_until(lambda: acks.acknowledged == [1, 0], SLOW)
    assert acks.rejected == []
    assert [queries.run(conn, queries.job(job))["failed"] for job in (held, other)] == [0, 0]  # type: ignore[index]


def test_a_message_of_a_locked_job_that_is_deleted_waits_no_more(conn: Conn, database_url: str) -> None:
    job, acks = make_job(conn, 1), RecordedAcks()
    with process_on(database_url) as process:
        parking = Parking(process, claims.park, lambda: None)
        with locked(database_url, LOCK_JOB, job) as other:
            parking.park(Attempt(job, 0, 1, [Delivery(acks, 7, None)], {}))
            assert wait_until(lambda: bool(parking.put_off), SLOW)
            other.execute("DELETE FROM callboard.jobs WHERE id = %s", (job,))
        assert wait_until(lambda: acks.acknowledged == [7], SLOW)


def test_no_thread_waits_for_an_item_that_is_locked(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 1)
    with locked(database_url, LOCK_ITEM, job), pytest.raises(ItemLocked):
        claim(conn, make_attempt(job, 0), 1)


def test_no_thread_waits_for_a_claim_that_it_gives_up(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep gives up what is left of it."""
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    job, worker, left = make_job(conn, 1), make_worker(conn), "SELECT FROM callboard.running"
    attempt = make_attempt(job, 0)
    claim(conn, attempt, worker)
    with process_on(database_url) as process, ThreadPoolExecutor(1) as thread:
        process.worker = worker
        in_flight = InFlight(process, Consumers(), lambda: None, lambda: None)
        with locked(database_url, LOCK_RUNNING, job):
            thread.submit(in_flight._release_claim, attempt).result(SLOW)
        assert conn.execute(left).rowcount == 1
    conn.execute("UPDATE callboard.running SET started_at = now() - interval '1 h'")
    workers.beat(conn, worker, [])
    sweep.drop_unheld_running(conn)
    assert conn.execute(left).rowcount == 0


@pytest.mark.parametrize("row", [LOCK_ITEM, LOCK_TURNS])
def test_a_message_without_its_actor_that_is_locked_holds_up_no_other(row: str, conn: Conn, database_url: str) -> None:
    """It is kept when nobody holds it any more, and published again."""
    held, other = make_job(conn, 2, published=1), make_job(conn, 2, published=1)
    acks = RecordedAcks()
    with process_on(database_url) as process:
        in_flight = InFlight(process, Consumers(), lambda: None, lambda: None)
        messages = {job: Delivered(Stamp(job, 0, 1), acks=acks, tag=job) for job in (held, other)}
        with locked(database_url, row, held):
            assert all(in_flight.postpone(message, Stamp(job, 0, 1)) for job, message in messages.items())
            assert [message.delivery.deferred for message in messages.values()] == [True, False]
            assert conn.execute("SELECT job_id FROM callboard.outbox").fetchall() == [(other,)]
        assert wait_until(lambda: acks.acknowledged == [held], SLOW)
    assert set(conn.execute("SELECT job_id FROM callboard.outbox").fetchall()) == {(held,), (other,)}


@pytest.mark.parametrize("row", [LOCK_JOB, LOCK_TURNS])
def test_a_job_that_is_locked_is_passed_over_by_its_publisher(row: str, conn: Conn, database_url: str) -> None:
    held, other = make_job(conn, 1, published=0), make_job(conn, 1, published=0)
    with locked(database_url, row, held):
        assert publishing.claim_given_job(conn, held) is None
        claimed = publishing.claim_job(conn)
        assert claimed is not None
        assert claimed.job == other
    claimed = publishing.claim_job(conn)
    assert claimed is not None
    assert claimed.job == held


@pytest.mark.parametrize("row", [LOCK_JOB, LOCK_TURNS])
def test_the_sweep_waits_for_no_job_that_is_locked(row: str, conn: Conn, database_url: str) -> None:
    """What it does for other jobs, it does meanwhile; for that one, as soon as nobody has it locked."""
    held, other = make_job(conn, 2, published=1), make_job(conn, 2, published=1)
    for job in (held, other):
        assert claims.postpone(conn, job, 0, 1, "away")
    make_worker(conn, "away")
    waiting = "SELECT job_id FROM callboard.outbox WHERE due_at > now()"
    with locked(database_url, row, held):
        assert sweep.republish(conn, other, [(1, 1)]) == 1
        claims.make_postponed_due(conn)
        # To lock a job keeps nobody from its messages.
        assert conn.execute(waiting).fetchall() == ([(held,)] if row == LOCK_TURNS else [])
    claims.make_postponed_due(conn)
    assert conn.execute(waiting).fetchall() == []
    conn.execute(LAPSE, ([held, other],))
    with locked(database_url, LOCK_JOB, held):
        assert submission.fail_abandoned_submissions(conn) == [other]
    assert submission.fail_abandoned_submissions(conn) == [held]


def test_many_postponed_messages_are_woken_in_several_looks_and_none_waits_for_a_turn_that_is_locked(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the job whose turn is locked are the first, and more than one look wakes."""
    monkeypatch.setattr(claims, "WOKEN_MESSAGES", 3)
    held, other = make_job(conn, 5), make_job(conn, 5)
    for job in (held, other):
        assert all(claims.postpone(conn, job, item, 1, "away") for item in range(5))
    make_worker(conn, "away")
    waiting = "SELECT job_id FROM callboard.outbox WHERE due_at > now() ORDER BY id"
    with locked(database_url, LOCK_TURNS, held):
        claims.make_postponed_due(conn)
        assert conn.execute(waiting).fetchall() == [*[(held,)] * 5, *[(other,)] * 2]
    for left in (4, 1, 0):
        claims.make_postponed_due(conn)
        assert conn.execute(waiting).rowcount == left


def test_messages_that_could_not_be_sent_are_given_back_while_another_job_is_locked(
    conn: Conn, database_url: str
) -> None:
    """The claim of what is locked lapses."""
    held, other = make_job(conn, 1), make_job(conn, 1)
    for job in (held, other):
        record(conn, job, {"retrying": [0]}, delay=0.0)
    batch = claim_outbox(conn, 2)
    with locked(database_url, LOCK_TURNS, held):
        publishing.release_outbox(conn, batch)
    released = "SELECT job_id FROM callboard.outbox WHERE claimed_until <= now()"
    assert conn.execute(released).fetchall() == [(other,)]


def test_nothing_waits_for_a_turn_for_long(conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    held = make_job(conn, 4, published=1)
    conn.execute("UPDATE callboard.jobs SET deadline = now() WHERE id = %s", (held,))
    steps: list[Callable[[], object]] = [
        lambda: sweep.republish(conn, held, [(1, 1)]),
        lambda: jobs.stop_overdue_jobs(conn),
    ]
    with locked(database_url, LOCK_TURNS, held):
        for step in steps:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                step()
    jobs.stop_job(conn, held, "cancelled", None)
    with locked(database_url, LOCK_TURNS, held):
        assert jobs.try_close_stopped(conn) == []
    assert jobs.close_stopped(conn) == [held]


def test_a_job_is_cancelled_while_another_that_is_being_stopped_is_locked(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only it is closed at once; the sweep closes the other one."""
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    held, job = make_job(conn, 1), make_job(conn, 1)
    conn.execute(
        "INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first) VALUES (%s, 0, 1, now(), false)", (held,)
    )
    jobs.stop_job(conn, held, "cancelled", None)
    with locked(database_url, LOCK_TURNS, held):
        actions.cancel(conn, job, Requester("python", "anna"))
        state = "SELECT state::text FROM callboard.jobs WHERE id = %s"
        assert conn.execute(state, (job,)).fetchone() == ("cancelled",)


def test_a_worker_whose_row_is_locked_holds_up_no_other_and_looks_for_work(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    conn.execute("SET statement_timeout = '20s'")
    held, other = make_worker(conn), make_worker(conn)
    conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 hour'")
    with locked(database_url, LOCK_WORKER, held):
        assert workers.beat(conn, held, []).live == 0
        assert [workers.declare_dead(conn, worker) for worker in (held, other)] == [False, True]
        with pytest.raises(psycopg.errors.LockNotAvailable):
            workers.stop_worker(conn, held)
    assert workers.declare_dead(conn, held)
    workers.beat(conn, held, [])
    assert not workers.declare_dead(conn, held)


@pytest.mark.parametrize("row", [LOCK_WORKER, "SELECT FROM callboard.actors WHERE name = 'late' AND %s > 0 FOR UPDATE"])
def test_a_worker_whose_new_actors_are_locked_looks_for_work(
    row: str, conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its actors are recorded when nobody holds them any more."""
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    make_worker(conn, "late")
    worker, found = make_worker(conn), list[DueWork | None]()
    with process_on(database_url) as process, ThreadPoolExecutor(1) as thread:
        process.worker = worker
        heartbeat = Heartbeat(
            process, held=list, apply_controls=lambda _: None, trouble=lambda: None, make_stages=lambda _: None,
            rescue=lambda _: None, mean_seconds=dict, work_done=lambda: None, holds_messages=lambda: False,
            begin=found.append, outdated=lambda _: None,
        )  # fmt: skip
        heartbeat.add_actor("late", "default", None)
        with locked(database_url, row, worker):
            thread.submit(heartbeat._step).result(SLOW)
            assert [due.live for due in found if due is not None] == [2]
        heartbeat._step()
    actors = "SELECT 'late' = ANY (actors) FROM callboard.workers WHERE id = %s"
    assert conn.execute(actors, (worker,)).fetchone() == (True,)


def test_a_hold_of_a_job_that_is_locked_keeps_no_other_from_its_hold(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    held, other = make_job(conn, 1), make_job(conn, 1)
    holds = "SELECT id FROM callboard.jobs WHERE not_before > now() ORDER BY id"
    with process_on(database_url) as process:
        in_flight = InFlight(process, Consumers(), lambda: None, lambda: None)
        with locked(database_url, LOCK_JOB, held):
            for job in (held, other):
                in_flight._hold_back((job, 0), 3_600.0, "it is asked too often")
            assert wait_until(lambda: conn.execute(holds).fetchall() == [(other,)], SLOW)
        assert wait_until(lambda: conn.execute(holds).fetchall() == [(held,), (other,)], SLOW)


def test_the_lease_of_a_submission_holds_while_another_is_locked(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that of the locked one is renewed before the sweep takes it for lapsed."""
    held, other = make_job(conn, 1, sealed=False), make_job(conn, 1, sealed=False)
    conn.execute(LAPSE, ([held, other],))
    with connect(database_url) as renewing, ThreadPoolExecutor(1) as thread:
        with locked(database_url, LOCK_JOB, held):
            monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
            assert submission.renew_submissions(renewing, [held, other]) == [held]
            assert submission.fail_abandoned_submissions(conn) == []
            monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", SLOW)
            renewed = thread.submit(submission.renew_submissions, renewing, [held, other])
            assert wait_until(lambda: waits(database_url), SLOW)
        assert renewed.result(SLOW) == []
    assert submission.fail_abandoned_submissions(conn) == []


def test_a_stopped_job_that_is_locked_holds_up_no_heartbeat(conn: Conn, database_url: str) -> None:
    held, other = make_job(conn, 1), make_job(conn, 1)
    for job in (held, other):
        jobs.stop_job(conn, job, "cancelled", None)
    with locked(database_url, LOCK_JOB, held):
        assert jobs.close_stopped(conn) == [other]
    assert jobs.close_stopped(conn) == [held]


def test_no_transaction_of_ours_waits_for_a_lock_without_a_limit(conn: Conn) -> None:
    with transaction(conn):
        assert conn.execute("SHOW lock_timeout").fetchone() == ("5s",)
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_a_process_that_is_frozen_in_a_transaction_loses_its_locks(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 1)
    frozen = subprocess.Popen([sys.executable, "-c", FROZEN, database_url, str(job)], stderr=subprocess.PIPE, text=True)
    try:
        assert wait_until(lambda: _is_locked(conn, job), SLOW)
        assert wait_until(lambda: not _is_locked(conn, job), SLOW)
        os.kill(frozen.pid, signal.SIGCONT)
        _, errors = frozen.communicate(timeout=SLOW)
    finally:
        frozen.kill()
        frozen.wait()
    assert "idle-in-transaction timeout" in errors


def test_a_submission_has_a_limit_of_its_own(conn: Conn) -> None:
    """PostgreSQL takes a session whose client is frozen in a COPY for active."""
    job = make_job(conn, 0, sealed=False)
    with transaction(conn):
        submission.store_chunk(conn, job, 0, [], keyed=False)
        assert conn.execute("SHOW statement_timeout").fetchone() == ("20s",)
        assert conn.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("5s",)
    assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)


@pytest.mark.parametrize("ends", ["well", "with an error", "rolled back"])
def test_a_transaction_ends_with_its_block(ends: str, conn: Conn) -> None:
    errors = {"with an error": KeyError("x"), "rolled back": psycopg.Rollback()}

    def end(error: BaseException | None) -> None:
        if error is not None:
            raise error

    def run() -> None:
        with transaction(conn):
            conn.execute("CREATE TEMPORARY TABLE t ()")
            with transaction(conn):
                conn.execute("CREATE TEMPORARY TABLE inner_t ()")
                end(psycopg.Rollback())
            end(errors.get(ends))

    if ends == "with an error":
        with pytest.raises(KeyError):
            run()
    else:
        run()
    made = conn.execute("SELECT to_regclass('pg_temp.t') IS NOT NULL, to_regclass('pg_temp.inner_t') IS NULL")
    assert made.fetchone() == (ends == "well", True)


def _is_locked(conn: Conn, job: int) -> bool:
    free = "SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE SKIP LOCKED"
    return conn.execute(free, (job,)).fetchone() is None
