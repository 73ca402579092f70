"""Cancel, pause, resume and retry as statements, commands and requests: what they change, and what they refuse."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

import callboard
from callboard import Identity
from callboard.job import would_retry
from callboard.sql import timings
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.reads.job_filter import JobFilter
from callboard.sql.rows import Event, Failure
from callboard.sql.statements import statement
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import actions as writes
from callboard.sql.writes import claims, jobs, outcomes, publishing, retention, retry_action, sends, submission, sweep
from callboard.sql.writes.requests import NoSuchItem, NoSuchJob, NotPossible, Requester
from callboard.sql.writes.retry_action import RetrySelection
from callboard.web import create_app
from tests.support.clients import client
from tests.support.databases import waiting, waits
from tests.support.jobs import BAD, MIXED, claim_outbox, make_job, make_mixed_job, make_worker, record, send, status
from tests.support.programs import Call
from tests.support.webapp import open_app, served
from tests.support.workers import wait_until

ANNA = Requester("python", "anna")
FAILED = RetrySelection()


def parts(conn: Conn, job: int) -> dict[str, int]:
    found = status(conn, job)
    return {state: found[state] for state in ITEM_STATES if found[state]}


def listed(conn: Conn, job: int) -> dict[str, int]:
    """How many items are listed under each state; what is said of an item is what it is listed under."""
    found = {}
    for state in ITEM_STATES:
        items, _ = queries.run(conn, queries.items(job, state=state, limit=500))
        assert {item["state"] for item in items} <= {state}
        found[state] = len(items)
    return {state: count for state, count in found.items() if count}


def stop(conn: Conn, job: int) -> None:
    """Cancel a job, and see it closed."""
    writes.cancel(conn, job, ANNA)
    conn.execute("DELETE FROM callboard.running WHERE job_id = %s", (job,))
    assert wait_until(lambda: jobs.close_stopped(conn) or status(conn, job)["finished_at"], 300)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_an_action_on_a_job_whose_row_is_locked_says_by_whom(
    conn: Conn, database_url: str, call: Call, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    """An open transaction of the app's may last for hours; a command would wait for it without a word."""
    monkeypatch.setattr(timings, "ACTION_LOCK_WAIT_SECONDS", 0.1)
    conn.execute(f"ALTER DATABASE {conn.info.dbname} SET default_transaction_isolation = '{isolation}'")
    job, over = make_job(conn, 2), make_job(conn, 2, published=2)
    record(conn, over, {"failed": range(2)}, worker=make_worker(conn))
    assert status(conn, over)["state"] == "completed"
    with psycopg.connect(database_url) as other, connect(database_url) as mine:
        other.execute("SELECT FROM callboard.jobs WHERE id = ANY (%s) FOR UPDATE", ([job, over],))
        for act in (writes.cancel, writes.pause):
            with pytest.raises(NotPossible, match="a row of the job is locked, perhaps by process"):
                act(mine, job, ANNA)
        with pytest.raises(NotPossible, match="is locked"):
            writes.limit(mine, job, ANNA, {"priority": 3})
        with pytest.raises(NotPossible, match="is locked"):
            retry_action.retry(mine, over, ANNA, FAILED)
        code, _, error = call("purge", str(over))
        assert code == 1
        assert "a row of the job is locked, perhaps by process" in error
    writes.pause(conn, job, ANNA)
    assert status(conn, job)["state"] == "paused"


def actions(conn: Conn, job: int) -> list[str]:
    return [action["action"] for action in queries.run(conn, queries.actions(job))[0]]


# What it does -------------------------------------------------------------------------------------------------------


def test_a_job_that_was_never_published_is_cancelled_at_once(conn: Conn) -> None:
    make_worker(conn)
    job = make_job(conn, 10, published=0)
    writes.cancel(conn, job, ANNA, reason="wrong file")
    found = status(conn, job)
    assert (found["state"], found["reason"], found["cancelled"]) == ("cancelled", "wrong file", 10)
    assert publishing.claim_given_job(conn, job) is None


def test_a_job_without_a_worker_is_cancelled_though_somebody_waits_for_its_row(conn: Conn, database_url: str) -> None:
    """As its publisher does: with no worker nobody would look at the job again."""
    job = make_job(conn, 10, published=10)
    lock = "SELECT FROM callboard.jobs WHERE id = %s FOR NO KEY UPDATE"
    with (
        psycopg.connect(database_url) as first,
        psycopg.connect(database_url) as next_one,
        connect(database_url) as mine,
        ThreadPoolExecutor(2) as pool,
    ):
        first.execute(lock, [job])
        cancelled = pool.submit(writes.cancel, mine, job, ANNA)
        assert wait_until(lambda: waiting(database_url) == 1, 300)
        locked = pool.submit(next_one.execute, lock, [job])
        assert wait_until(lambda: waiting(database_url) == 2, 300)
        first.commit()
        cancelled.result(300)
        locked.result(300)
        assert status(conn, job)["state"] == "cancelled"


def test_no_item_is_written_to_pause_resume_or_cancel_a_job(conn: Conn) -> None:
    """Nor is one of a million: it takes as long as with one, and leaves nothing for the vacuum."""
    job = make_job(conn, 50, published=20)
    rows = "SELECT ctid, xmin, xmax FROM callboard.items WHERE job_id = %s ORDER BY item"
    before = conn.execute(rows, (job,)).fetchall()
    writes.pause(conn, job, ANNA)
    writes.resume(conn, job, ANNA)
    stop(conn, job)
    assert status(conn, job)["cancelled"] == 50
    assert conn.execute(rows, (job,)).fetchall() == before
    assert conn.execute("SELECT count(*) FROM callboard.outbox").fetchone() == (0,)


def test_a_job_with_items_in_hand_is_being_stopped_until_they_end(conn: Conn) -> None:
    job = make_mixed_job(conn)
    writes.cancel(conn, job, ANNA)
    found = status(conn, job)
    assert (found["state"], found["stopping"], found["finished_at"]) == ("running", "cancelled", None)
    moved = {"running": 3, "succeeded": 20, "failed": 5, "skipped": 5, "cancelled": 67}
    assert parts(conn, job) == moved == listed(conn, job)
    record(conn, job, {"succeeded": range(40, 42), "failed": [42]})
    conn.execute("DELETE FROM callboard.running")
    assert wait_until(lambda: jobs.close_stopped(conn) == [job], 300)
    ended = {"succeeded": 22, "failed": 6, "skipped": 5, "cancelled": 67}
    assert parts(conn, job) == ended == listed(conn, job)
    assert status(conn, job)["state"] == "cancelled"


def test_what_is_being_stopped_takes_nothing_more(conn: Conn) -> None:
    make_worker(conn)
    job = make_job(conn, 10, published=5, sealed=False)
    writes.cancel(conn, job, ANNA)
    assert submission.store_chunk(conn, job, 10, [(b"{}", None)], keyed=False) == ("stopped", 10)
    assert jobs.lock_jobs(conn, [job]) == {job: False}
    assert publishing.claim_given_job(conn, job) is None
    assert claim_outbox(conn, 10) == []


def test_a_standing_job_that_was_stopped_stays_one_and_leaves_its_day_to_another(conn: Conn) -> None:
    """Else what its items send once they are retried is sent as that of a submitted job, and it is listed as one."""
    day = sends.standing_job(conn, "work", "default")
    send(conn, day, 0)
    assert claim_outbox(conn, 1)[0].standing
    stop(conn, day)
    following = sends.standing_job(conn, "work", "default")
    assert following not in (day, None)
    assert sends.standing_job(conn, "work", "default") == following
    retry_action.retry(conn, day, ANNA, RetrySelection(["cancelled"]))
    claim = publishing.claim_given_job(conn, day)
    assert claim is not None
    assert [out.standing for out in publishing.claim_in_turn(conn, claim, 1)] == [True]
    found, _ = queries.run(conn, queries.jobs(JobFilter(standing=True)))
    assert {job["id"] for job in found} == {day, following}
    send(conn, following, 0)
    writes.limit(conn, following, ANNA, {"max_failures": 0})
    record(conn, following, {"failed": [0]})
    assert sends.standing_job(conn, "work", "default") not in (day, following)


def test_a_publisher_at_work_stops_where_it_is(conn: Conn) -> None:
    job = make_job(conn, 100, published=0)
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    assert publishing.advance_watermark(conn, claim, watermark=10, published=10, keep=True)
    writes.pause(conn, job, ANNA)
    assert not publishing.advance_watermark(conn, claim, watermark=20, published=10, keep=True)
    assert parts(conn, job) == {"pending": 80, "queued": 20}
    assert publishing.claim_given_job(conn, job) is None
    writes.resume(conn, job, ANNA)
    assert publishing.claim_given_job(conn, job) is not None


def test_parked_messages_are_published_in_their_jobs_turn_and_in_order(conn: Conn) -> None:
    job = make_job(conn, 10, published=6)
    writes.pause(conn, job, ANNA)
    claims.park(conn, [(job, item, 1) for item in (5, 2, 4, 2)])
    assert parts(conn, job) == {"pending": 7, "queued": 3} == listed(conn, job)
    assert publishing.claim_given_job(conn, job) is None
    writes.resume(conn, job, ANNA)
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    assert claim.in_turn == 3
    again = publishing.claim_in_turn(conn, claim, 2)
    assert [(out.item, out.attempt, out.suspect) for out in again] == [(2, 1, True), (4, 1, True)]
    publishing.confirm_outbox(conn, again)
    assert parts(conn, job) == {"pending": 5, "queued": 5} == listed(conn, job)


def test_a_message_parked_before_its_publisher_settled_it_is_not_lost(conn: Conn) -> None:
    """The publisher then deletes what it sent; it is a row of its own that comes back."""
    job = make_job(conn, 0, sealed=False)
    send(conn, job, 0)
    record(conn, make_job(conn, 1), {"succeeded": [0]})
    (sent,) = claim_outbox(conn, 10)
    claims.park(conn, [(job, 0, 1)])
    assert parts(conn, job) == {"pending": 1}
    publishing.confirm_outbox(conn, [sent])
    assert parts(conn, job) == {"pending": 1}
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    assert claim.queue == "default"
    assert [out.item for out in publishing.claim_in_turn(conn, claim, 10)] == [0]


def test_copies_that_two_workers_park_at_once_are_kept_once(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 10)
    writes.pause(conn, job, ANNA)
    messages = [(job, item, 1) for item in range(10)]
    with connect(database_url) as first, ThreadPoolExecutor(1) as pool:
        with first.transaction():
            claims.park(first, messages)
            second = pool.submit(claims.park, conn, messages)
            assert wait_until(lambda: waits(database_url), 300)
        second.result(300)
    assert parts(conn, job) == {"pending": 10}
    assert conn.execute("SELECT in_turn FROM callboard.jobs WHERE id = %s", (job,)).fetchone() == (10,)


def test_what_is_final_or_has_another_attempt_is_not_parked(conn: Conn) -> None:
    job = make_job(conn, 3)
    record(conn, job, {"succeeded": [0], "retrying": [1]})
    claims.park(conn, [(job, 0, 1), (job, 1, 1), (job, 2, 1)])
    assert parts(conn, job) == {"pending": 1, "retrying": 1, "succeeded": 1}


def test_a_retry_that_was_published_is_parked_as_what_it_is(conn: Conn) -> None:
    job = make_job(conn, 1)
    record(conn, job, {"retrying": [0]}, delay=0)
    (out,) = claim_outbox(conn, 10)
    claims.park(conn, [(job, 0, 2)])
    assert parts(conn, job) == {"pending": 1}
    publishing.confirm_outbox(conn, [out])
    assert parts(conn, job) == {"pending": 1}


def test_a_retry_moves_the_counts_back_and_keeps_the_attempts(conn: Conn) -> None:
    job = make_mixed_job(conn)
    assert retry_action.retry(conn, job, ANNA, FAILED) == 5
    assert retry_action.retry(conn, job, ANNA, FAILED) == 0
    expected = {name: count for name, count in {**MIXED, "failed": 0, "pending": 25}.items() if count}
    assert parts(conn, job) == expected == listed(conn, job)
    assert status(conn, job)["retries"] == 8
    (group,) = queries.run(conn, queries.errors(job))
    assert (group["count"], group["failed"]) == (8, 0)
    assert [attempt["retried"] for attempt in queries.run(conn, queries.attempts(job, 20))] == [True]
    record(conn, job, {"succeeded": range(20, 25)}, attempt=1)  # of the attempt that is over
    assert parts(conn, job) == expected
    record(conn, job, {"succeeded": range(20, 25)}, attempt=2)
    assert status(conn, job)["succeeded"] == 25
    assert actions(conn, job) == ["retry"]


def test_a_retry_looks_at_an_items_last_attempt_only(conn: Conn) -> None:
    """What it failed by before, and was retried for by hand, chooses it no more and counts no more."""
    job = make_job(conn, 3)
    record(conn, job, {"failed": range(3)})
    assert retry_action.retry(conn, job, ANNA, FAILED) == 3
    record(conn, job, {"failed": range(3)}, attempt=2, failure=Failure("failed", "app.Full", "no", "a.py:1 in b"))
    assert listed(conn, job) == {"failed": 3}
    assert status(conn, job)["retries"] == 3
    assert retry_action.retry(conn, job, ANNA, RetrySelection(error=BAD.error_type)) == 0
    assert retry_action.retry(conn, job, ANNA, RetrySelection(error="Full", items=[1])) == 1
    assert status(conn, job)["retries"] == 4
    groups = {group["type"]: (group["count"], group["failed"]) for group in queries.run(conn, queries.errors(job))}
    assert groups == {BAD.error_type: (3, 0), "app.Full": (3, 2)}
    told = [attempt["retried"] for item in range(2) for attempt in queries.run(conn, queries.attempts(job, item))]
    assert told == [True, False, True, True]


def test_a_retry_of_a_group_of_errors_gives_its_items_another_attempt(conn: Conn) -> None:
    job, other = make_job(conn, 9), make_job(conn, 9)
    for one in (job, other):
        record(conn, one, {"failed": range(3)})
        record(conn, one, {"failed": range(3, 9)}, failure=Failure("failed", "ValueError", "else", "a.py:1 in b"))
    groups = queries.run(conn, queries.errors(job))
    for group, count in zip(groups, (6, 3), strict=True):
        assert group["failed"] == count
        assert retry_action.retry(conn, other, ANNA, RetrySelection(error=group["id"])) == 0
        assert retry_action.retry(conn, job, ANNA, RetrySelection(error=group["id"])) == count
        assert queries.run(conn, queries.actions(job))[0][0]["detail"] == {"error": group["id"], "count": count}
    assert retry_action.retry(conn, other, ANNA, RetrySelection(error="ValueError")) == 9


def test_a_retry_writes_nothing_into_attempts(conn: Conn) -> None:
    """A million tracebacks would be written anew."""
    job = make_job(conn, 50)
    record(conn, job, {"failed": range(50)})
    where = "SELECT item, attempt, ctid, xmin, xmax FROM callboard.attempts ORDER BY 1, 2"
    before = conn.execute(where).fetchall()
    assert retry_action.retry(conn, job, ANNA, FAILED) == 50
    assert conn.execute(where).fetchall() == before


def test_a_dead_letter_that_waits_becomes_the_retrys_message(conn: Conn) -> None:
    """Its row is there already; for the other items rows are added."""
    job, worker = make_job(conn, 4), make_worker(conn)
    died = Failure("crashed", "WorkerDied", "no")
    events = [Event(job, n, 1, "failed", 0.1, 0.0, worker, died, crashed=True) for n in range(2)]
    outcomes.record(conn, events, 0.0)
    record(conn, job, {"failed": [2, 3]})
    rows = "SELECT item, attempt, dead, in_turn FROM callboard.outbox ORDER BY item"
    assert conn.execute(rows).fetchall() == [(0, 1, True, False), (1, 1, True, False)]
    claimed = claim_outbox(conn, 10)
    assert retry_action.retry(conn, job, ANNA, FAILED) == 4
    assert status(conn, job)["crashes"] == 0
    assert conn.execute(rows).fetchall() == [(n, 2, False, True) for n in range(4)]
    publishing.confirm_outbox(conn, claimed)  # the publisher of the dead letters takes no row away
    assert conn.execute(rows).fetchall() == [(n, 2, False, True) for n in range(4)]
    assert parts(conn, job) == {"pending": 4} == listed(conn, job)


def test_an_item_goes_on_that_failed_while_it_was_parked_too(conn: Conn) -> None:
    """A copy of its message was parked; its dead letter took that place, and is not counted with what is to come."""
    job = make_job(conn, 1)
    claims.park(conn, [(job, 0, 1)])
    now = time.monotonic()
    outcomes.record(conn, [Event(job, 0, 1, "failed", 0.1, now, 1, BAD, dead=True)], now)
    assert retry_action.retry(conn, job, ANNA, RetrySelection()) == 1
    claim = publishing.claim_job(conn)
    assert claim is not None
    assert [(out.item, out.attempt, out.dead) for out in publishing.claim_in_turn(conn, claim, 10)] == [(0, 2, False)]


def test_a_row_that_comes_between_is_met_by_trying_again(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody should add one; if somebody does, the whole retry is undone, and sees it the next time."""
    job = make_job(conn, 2)
    record(conn, job, {"failed": [0, 1]})
    row = "INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first) VALUES (%s, 1, 1, now(), false)"
    asked, committing = list[str](), list[Future[None]]()

    def commit() -> None:
        """While the retry waits at the unique key."""
        assert wait_until(lambda: waits(database_url), 300)
        holder.commit()

    def meddling(name: str) -> Any:
        asked.append(name)
        if name == "retry_ended_items" and asked.count(name) == 1:
            holder.execute(row, (job,))
            committing.append(pool.submit(commit))
        return statement(name)

    monkeypatch.setattr(retry_action, "statement", meddling)
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as pool:
        assert retry_action.retry(conn, job, ANNA, FAILED) == 2
        for done in committing:
            done.result(300)
    assert asked.count("retry_ended_items") == 2
    assert parts(conn, job) == {"pending": 2} == listed(conn, job)


def test_what_ran_before_its_publisher_settled_it_counts_as_published_when_it_is_retried(conn: Conn) -> None:
    job = make_job(conn, 0, sealed=False)
    send(conn, job, 0)
    (sent,) = claim_outbox(conn, 10)
    record(conn, job, {"failed": [0]})
    assert retry_action.retry(conn, job, ANNA, RetrySelection()) == 1
    assert queries.run(conn, queries.verify())["drift"] == []
    publishing.confirm_outbox(conn, [sent])
    assert queries.run(conn, queries.verify())["drift"] == []
    assert parts(conn, job) == {"pending": 1}


def test_a_retry_takes_what_is_chosen(conn: Conn) -> None:
    job = make_mixed_job(conn)
    for count in (retry_action.retry, would_retry):
        with pytest.raises(NoSuchItem, match=f"there is no item 100 of job {job}: .* it has 100"):
            count(conn, job, ANNA, RetrySelection(items=[20, 100]))
    assert retry_action.retry(conn, job, ANNA, RetrySelection(items=[20, 25, 0, 40])) == 2
    assert retry_action.retry(conn, job, ANNA, RetrySelection(error="KeyError")) == 0
    assert retry_action.retry(conn, job, ANNA, RetrySelection(error=BAD.error_type)) == 4
    assert retry_action.retry(conn, job, ANNA, RetrySelection(["skipped"])) == 4
    assert status(conn, job)["failed"] == status(conn, job)["skipped"] == 0


def test_a_completed_job_opens_again_and_completes_again(conn: Conn) -> None:
    job = make_job(conn, 4)
    record(conn, job, {"succeeded": [0, 1], "failed": [2, 3]})
    assert status(conn, job)["state"] == "completed"
    assert retry_action.retry(conn, job, ANNA, RetrySelection(items=[3])) == 1
    found = status(conn, job)
    assert (found["state"], found["finished_at"]) == ("running", None)
    assert parts(conn, job) == {"pending": 1, "succeeded": 2, "failed": 1}
    record(conn, job, {"succeeded": [3]}, attempt=2)
    assert status(conn, job)["state"] == "completed"


def test_a_job_that_is_opened_again_has_no_rate_of_days_ago(conn: Conn) -> None:
    """What it did in two days, and when it would be done at that rate, is no news."""
    job = make_job(conn, 100)
    record(conn, job, {"succeeded": range(50), "failed": range(50, 100)})
    ago = "UPDATE callboard.jobs SET started_at = now() - interval '2 d' WHERE id = %s"
    conn.execute(ago, (job,))
    retry_action.retry(conn, job, ANNA, RetrySelection())
    found = status(conn, job)
    assert (found["state"], found["rate"], found["eta"]) == ("running", None, None)
    with conn.transaction():  # at one time
        sweep.sample_jobs(conn)
        record(conn, job, {"succeeded": range(50, 75)}, attempt=2)
        conn.execute("UPDATE callboard.jobs SET control_at = control_at - interval '6 s' WHERE id = %s", (job,))
        conn.execute("UPDATE callboard.samples SET taken_at = taken_at - interval '5 s'")
        assert status(conn, job)["rate"] == pytest.approx(5, abs=0.5)


def test_a_cancelled_job_goes_on_where_it_was(conn: Conn) -> None:
    """What was published comes again from the outbox, what was not by the watermark."""
    job = make_mixed_job(conn)
    stop(conn, job)
    assert retry_action.retry(conn, job, ANNA, RetrySelection(["cancelled"])) == 70
    assert parts(conn, job) == {"pending": 70, "succeeded": 20, "failed": 5, "skipped": 5} == listed(conn, job)
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    assert (claim.watermark, claim.in_turn) == (80, 50)
    again = publishing.claim_in_turn(conn, claim, 100)
    assert {(out.item, out.suspect) for out in again} == {(item, True) for item in range(30, 80)}
    # Those that waited for a retry are at their second attempt.
    assert [out.attempt for out in again] == [2, 2, 2] + [1] * 47


def test_of_a_cancelled_job_only_what_is_chosen_goes_on(conn: Conn) -> None:
    job = make_mixed_job(conn)
    stop(conn, job)
    assert retry_action.retry(conn, job, ANNA, RetrySelection(error="KeyError")) == 0
    assert status(conn, job)["state"] == "cancelled"
    assert retry_action.retry(conn, job, ANNA, RetrySelection(items=[20, 99])) == 2
    assert parts(conn, job) == {
        "pending": 2, "succeeded": 20, "failed": 4, "skipped": 5, "cancelled": 69,
    } == listed(conn, job)  # fmt: skip
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    assert claim.watermark == claim.total
    assert [(out.item, out.attempt) for out in publishing.claim_in_turn(conn, claim, 10)] == [(20, 2), (99, 1)]
    record(conn, job, {"succeeded": [20]}, attempt=2)
    record(conn, job, {"failed": [99]})
    found = status(conn, job)
    assert (found["state"], found["cancelled"], found["progress"]) == ("completed", 69, 1.0)
    assert retry_action.retry(conn, job, ANNA, RetrySelection(["cancelled"])) == 69
    assert parts(conn, job) == {"pending": 69, "succeeded": 21, "failed": 5, "skipped": 5}


def test_children_of_a_cancelled_job_go_on_too(conn: Conn) -> None:
    job = make_job(conn, 2, sealed=False)
    send(conn, job, 2)
    send(conn, job, 3)
    (_, _) = claim_outbox(conn, 10)
    send(conn, job, 4)
    stop(conn, job)
    sweep.drop_messages_of_ended_jobs(conn)
    assert retry_action.retry(conn, job, ANNA, RetrySelection(["cancelled"])) == 5
    assert parts(conn, job) == {"pending": 5}
    assert status(conn, job)["sealed"]


def test_a_standing_job_gives_its_day_to_a_new_one(conn: Conn) -> None:
    job = sends.standing_job(conn, "work", "default")
    writes.cancel(conn, job, ANNA)
    assert sends.standing_job(conn, "work", "default") != job


def test_two_that_press_at_once_do_it_once(conn: Conn, database_url: str) -> None:
    job = make_mixed_job(conn)
    stop(conn, job)
    gate, done = threading.Barrier(4), []

    def press() -> None:
        with connect(database_url) as own:
            gate.wait()
            done.append(retry_action.retry(own, job, ANNA, RetrySelection(["failed", "cancelled"])))

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(done) == [0, 0, 0, 75]
    assert actions(conn, job) == ["retry", "cancel"]


def test_who_holds_a_job_says_it_over_a_restart_of_the_database(conn: Conn, database_url: str) -> None:
    """As a web app does, whose connection was cut off since it last asked."""
    number = make_mixed_job(conn)
    cut = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = current_database()"
    with client({"AMQP_URL": "amqp://127.0.0.1:1", "DATABASE_URL": database_url}, []):
        job = callboard.get(number)
        for say, state in ((job.pause, "paused"), (job.resume, "running"), (job.status, "running")):
            conn.execute(f"{cut} AND pid <> pg_backend_pid()")
            assert say()["state"] == state
    assert actions(conn, number) == ["resume", "pause"]


def test_an_action_whose_answer_was_lost_is_not_repeated(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database restarts within its COMMIT: to retry once more would return that it gave no item another attempt."""
    number, retry, cuts = make_mixed_job(conn), retry_action.retry, iter([True])

    def cut(own: Conn, *given: Any) -> int:
        count = retry(own, *given)
        if next(cuts, False):
            conn.execute("SELECT pg_terminate_backend(%s, 60000)", (own.info.backend_pid,))
            own.execute("SELECT 1")
        return count

    monkeypatch.setattr(retry_action, "retry", cut)
    with client({"AMQP_URL": "amqp://127.0.0.1:1", "DATABASE_URL": database_url}, []):
        job = callboard.get(number)
        with pytest.raises(psycopg.OperationalError):
            job.retry()
        assert job.status()["failed"] == 0
    assert actions(conn, number) == ["retry"]


# What it refuses ----------------------------------------------------------------------------------------------------

SAY: dict[str, Callable[[Conn, int], Any]] = {
    "cancel": lambda conn, job: writes.cancel(conn, job, ANNA),
    "pause": lambda conn, job: writes.pause(conn, job, ANNA),
    "resume": lambda conn, job: writes.resume(conn, job, ANNA),
    "retry": lambda conn, job: retry_action.retry(conn, job, ANNA, FAILED),
}


@pytest.mark.parametrize("action", SAY)
def test_there_must_be_such_a_job(action: str, conn: Conn) -> None:
    with pytest.raises(NoSuchJob, match="no job 5"):
        SAY[action](conn, 5)
    job = make_mixed_job(conn)
    with pytest.raises(NoSuchJob):
        writes.cancel(conn, job, Requester("http", "anna", tenant="another's"))


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_what_is_over_is_over(action: str, conn: Conn) -> None:
    job = make_job(conn, 1)
    record(conn, job, {"succeeded": [0]})
    with pytest.raises(NotPossible, match=f"job {job} is completed"):
        SAY[action](conn, job)
    assert actions(conn, job) == []


@pytest.mark.parametrize("action", ["pause", "resume", "retry"])
def test_what_is_being_stopped_is_left_alone(action: str, conn: Conn) -> None:
    job = make_mixed_job(conn)
    writes.cancel(conn, job, ANNA)
    with pytest.raises(NotPossible, match="is being stopped"):
        SAY[action](conn, job)
    assert actions(conn, job) == ["cancel"]


def test_said_twice_is_done_once(conn: Conn) -> None:
    job = make_mixed_job(conn)
    for action in ("resume", "pause", "pause", "resume", "resume", "cancel", "cancel"):
        SAY[action](conn, job)
    assert actions(conn, job) == ["cancel", "resume", "pause"]
    assert status(conn, job)["stopping"] == "cancelled"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"states": ["succeeded"]}, "states must be some of failed, skipped, cancelled, not 'succeeded'"),
        ({"states": "failed"}, "states must be a list, not 'failed'"),
        ({"states": []}, "states is empty: name some of failed, skipped, cancelled, or leave it out"),
        ({"states": ["skipped"], "error": "KeyError"}, "error selects failed items"),
        ({"items": 7}, "items must be a list, not 7"),
        *(({"items": [0, item]}, "items must be whole numbers") for item in (-1, 2**31, "7", 1.0, True)),
        ({"error": KeyError}, "error must be a text"),
        ({"error": "a\x00"}, "error must not contain a NUL character"),
    ],
)
def test_a_choice_must_make_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RetrySelection(**given)


@pytest.mark.parametrize("reason", [5, "x" * 501, "a\x00b", "\ud800"])
def test_a_reason_that_cant_be_kept_cancels_nothing(reason: Any, conn: Conn) -> None:
    job = make_job(conn, 1)
    with pytest.raises(ValueError, match="reason"):
        writes.cancel(conn, job, ANNA, reason=reason)
    assert status(conn, job)["stopping"] is None
    assert actions(conn, job) == []


def test_items_may_be_any_iterable(conn: Conn) -> None:
    job = make_mixed_job(conn)
    assert retry_action.retry(conn, job, ANNA, RetrySelection(items=(n for n in (20, 25)))) == 2
    assert retry_action.retry(conn, job, ANNA, RetrySelection(items=[])) == 0
    assert queries.run(conn, queries.actions(job))[0][0]["detail"] == {"items": [20, 25], "count": 2}


# By the command line ------------------------------------------------------------------------------------------------


def test_the_commands_say_it(call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    code, out, err = call("pause", job)
    assert (code, err) == (0, "")
    assert out.startswith(f"{job} mixed paused ")
    assert json.loads(call("resume", job, "--json")[1])["state"] == "running"
    assert call("retry", job, "--state", "failed", "--item", 20)[1].endswith("1 item will get another attempt\n")
    said = call("retry", job, "--state", "failed", "--state", "skipped")[1]
    assert said.endswith("9 items will get another attempt\n")
    assert "is being stopped: cancelled" in call("cancel", job, "--reason", "wrong file")[1]
    listed, _ = queries.run(conn, queries.actions(job))
    assert [action["action"] for action in listed] == ["cancel", "retry", "retry", "resume", "pause"]
    assert listed[0]["via"] == "cli"
    assert "@" in listed[0]["who"]
    assert listed[0]["detail"] == {"reason": "wrong file"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("cancel", 5), 1, "no job 5"),
        (("pause", "JOB"), 1, "is being stopped: there is nothing left to pause"),
        (("retry", "JOB", "--state", "succeeded"), 2, "must be one of failed, skipped, cancelled, not 'succeeded'"),
        (("retry", "JOB", "--state", "skipped", "--error", "X"), 2, "error selects failed items"),
        (("retry", "JOB", "--item", "-1"), 2, "greater than or equal to 0"),
        (("retry", "JOB", "--item", 2**31), 2, "items must be whole numbers from 0 to 2147483647"),
        (("cancel", "JOB", "--reason", "x" * 501), 2, "reason must be a text of at most 500 characters"),
    ],
)
def test_the_commands_refuse(arguments: tuple[object, ...], code: int, said: str, call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    writes.cancel(conn, job, ANNA)
    done = call(*(job if word == "JOB" else word for word in arguments))
    assert done[0] == code
    assert done[1] == ""
    assert said in done[2]
    assert done[2].count("\n") == 1


# By HTTP ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def http(database_url: str) -> Iterator[httpx.Client]:
    """A client of the app."""
    with served(open_app(database_url)) as address, httpx.Client(base_url=address) as client:
        yield client


def test_the_api_says_it(http: httpx.Client, conn: Conn) -> None:
    job = make_mixed_job(conn)
    assert http.post(f"/api/jobs/{job}/pause").json()["state"] == "paused"
    assert http.post(f"/api/jobs/{job}/resume").json()["state"] == "running"
    retried = http.post(f"/api/jobs/{job}/retry", json={"states": ["skipped"], "items": [25, 26]})
    assert (retried.status_code, retried.json()["skipped"]) == (200, 3)
    stopped = http.post(f"/api/jobs/{job}/cancel", json={"reason": "wrong file"}).json()
    assert (stopped["stopping"], stopped["reason"]) == ("cancelled", "wrong file")
    page = http.get(f"/api/jobs/{job}/actions?limit=3").json()
    assert [action["action"] for action in page["actions"]] == ["cancel", "retry", "resume"]
    noted = page["actions"][0]
    assert (noted["who"], noted["via"], noted["address"]) == ("127.0.0.1", "http", "127.0.0.1")
    rest = http.get(f"/api/jobs/{job}/actions?after={page['next']}").json()
    assert ([action["action"] for action in rest["actions"]], rest["next"]) == (["pause"], None)


def test_the_api_refuses(http: httpx.Client, conn: Conn) -> None:
    job = make_job(conn, 1)
    record(conn, job, {"succeeded": [0]})
    refused: list[tuple[str, Any, int, str]] = [
        ("5/cancel", {}, 404, "there is no job 5"),
        ("x/cancel", {}, 404, "no job"),
        ("5/actions", None, 404, "there is no job 5"),
        ("JOB/resume", {}, 409, "only a paused job can be resumed"),
        ("JOB/retry", {"json": {"states": ["succeeded"]}}, 422, "states must be some of failed"),
        ("JOB/retry", {"json": {"state": "failed"}}, 422, "state is unknown; known are states, "),
        ("JOB/retry", {"json": {"items": [-1]}}, 422, "items must be whole numbers from 0 to"),
        ("JOB/retry", {"json": {"items": [2**31]}}, 422, "items must be whole numbers from 0 to"),
        ("JOB/retry", {"json": {"states": []}}, 422, "states is empty"),
        ("JOB/retry", {"json": {"error": 5}}, 422, "error"),
        ("JOB/retry", {"json": {"items": []}}, 422, "length >= 1"),
        ("JOB/cancel", {"json": {"reason": "a \x00"}}, 422, "reason must not contain a NUL character"),
        ("JOB/cancel", {"json": {"reason": "x" * 501}}, 422, "reason must be a text of at most 500"),
        ("JOB/pause", {"json": {"why": 1}}, 422, "why"),
        ("JOB/cancel", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not valid JSON"),
        ("JOB/cancel", {"content": b"reason=x"}, 415, "application/json"),
        ("JOB/cancel", {"json": {"reason": "x" * 2_000_000}}, 413, "larger than"),
        ("JOB/cancel", {"headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "another site"),
        ("JOB/cancel", {"headers": {"Origin": "https://evil.example"}}, 403, "another site"),
    ]
    for path, sent, code, said in refused:
        where = f"/api/jobs/{path.replace('JOB', str(job))}"
        answer = http.get(where) if sent is None else http.post(where, **sent)
        assert answer.status_code == code, (path, sent, answer.text)
        assert answer.headers["content-type"] == "application/problem+json", (path, sent)
        assert said in answer.json()["detail"], (path, sent)
        assert actions(conn, job) == [], (path, sent)


@pytest.mark.parametrize("fails", ["RAISE 'it is under audit'", "PERFORM 1 / 0", "PERFORM * FROM no_table"])
def test_an_action_that_a_trigger_of_the_users_refuses_says_so(
    http: httpx.Client, call: Call, conn: Conn, fails: str
) -> None:
    kept, free = make_job(conn, 1), make_job(conn, 1)
    conn.execute(
        f"CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fails}; END $$".encode()
    )
    conn.execute(
        "CREATE TRIGGER audit BEFORE UPDATE ON callboard.jobs FOR EACH ROW"
        f" WHEN (NEW.id = {kept}) EXECUTE FUNCTION public.audit()".encode()
    )
    said = r"^a function of this database refuses it: .*; in .*audit\(\)"
    for act in (writes.pause, writes.cancel):
        with pytest.raises(NotPossible, match=said):
            act(conn, kept, ANNA)
    code, out, error = call("pause", kept)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "callboard: a function of this database refuses it" in error
    answer = http.post(f"/api/jobs/{kept}/pause")
    assert answer.status_code == 409
    assert re.search(said, answer.json()["detail"])
    many = http.post("/api/jobs/actions", json={"action": "pause", "ids": [kept, free]}).json()
    assert (many["jobs"], [refusal["job"] for refusal in many["refusals"]]) == (1, [kept])
    assert (status(conn, kept)["state"], status(conn, free)["state"]) == ("pending", "paused")


def test_limits_are_said_by_the_command_and_the_api(http: httpx.Client, call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    where = f"/api/jobs/{job}"
    assert http.patch(where, json={"rate": "10/s", "concurrency": 5}).json()["limits"] == {
        "rate": "10/s", "concurrency": 5,
    }  # fmt: skip
    assert call("limit", job, "--rate", "none", "--priority", "3", "--max-failures", "5%")[0] == 0
    assert json.loads(call("status", job, "--json")[1])["limits"] == {
        "concurrency": 5, "priority": 3, "max_failures": "5%",
    }  # fmt: skip
    assert call("limit", job, "--concurrency-by", "customer=2")[0] == 0
    assert http.get(where).json()["limits"]["concurrency_by"] == "customer=2"
    assert http.patch(where, json={"keep": "90d"}).json()["limits"]["keep"] == "90d"
    answer = http.patch(where, json={"concurrency_by": {"customer": 3}, "keep": None})
    assert answer.json()["limits"]["concurrency_by"] == "customer=3"
    assert call("limit", job, "--concurrency-by", "none")[0] == 0
    assert "concurrency_by" not in http.get(where).json()["limits"]
    for given, said in (
        ({"rate": "fast"}, "rate"),
        ({"speed": 1}, "speed"),
        ({"concurrency": "5"}, "concurrency"),
        ({"concurrency_by": "customer"}, "concurrency_by"),
        ({"concurrency_by": ["customer", 5]}, "concurrency_by"),
    ):
        refused = http.patch(where, json=given)
        assert (refused.status_code, said in refused.json()["detail"]) == (422, True)
    assert http.patch("/api/jobs/5", json={"rate": None}).status_code == 404
    for arguments in (("--rate", "fast"), ("--concurrency", "many"), ("--concurrency-by", "customer"), ()):
        code, _, error = call("limit", job, *arguments)
        assert (code, error.count("\n")) == (2, 1)
    assert actions(conn, job) == ["limit"] * 6


def test_saying_it_takes_a_post(http: httpx.Client, conn: Conn) -> None:
    job = make_mixed_job(conn)
    assert http.get(f"/api/jobs/{job}/cancel").status_code == 405
    assert actions(conn, job) == []


def test_the_history_names_who_the_login_names(database_url: str, conn: Conn) -> None:
    app = create_app(url=database_url, authenticate=lambda _request: Identity("anna"))
    job = make_mixed_job(conn)
    with served(app) as address:
        httpx.post(f"{address}/api/jobs/{job}/pause", headers={"Sec-Fetch-Site": "same-origin"})
    assert queries.run(conn, queries.actions(job))[0][0]["who"] == "anna"


def test_what_is_over_again_when_its_deletion_is_refused_stays_and_says_so(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened by a retry, and ended, while it was to be deleted."""
    job = make_job(conn, 1)
    record(conn, job, {"succeeded": [0]})
    monkeypatch.setattr(retention, "mark_deleted", lambda *_: [])
    with pytest.raises(NotPossible, match="can be deleted when it is over"):
        writes.delete(conn, job, ANNA)
