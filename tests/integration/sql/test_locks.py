"""Statements that lock the same rows, led to where each has some of what the other wants, if their orders differ.

One stops in the middle of its rows, since somebody has that one; the other comes; then that one is let go.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from callboard.sql import timings
from callboard.sql.limits import NO_LIMITS
from callboard.sql.pool import Conn, connect, transaction
from callboard.sql.reads import queries
from callboard.sql.rows import Event, Outgoing, PlannedStage, Retry, Running
from callboard.sql.statements import execute, statement
from callboard.sql.writes import (
    actions,
    claims,
    lanes,
    outcomes,
    publishing,
    retention,
    retry_action,
    stages,
    submission,
    sweep,
    workers,
)
from callboard.sql.writes.jobs import close_stopped
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.faults.rig.concurrent_writers import broken_deadlocks, reverse_rows
from tests.support.databases import waiting
from tests.support.jobs import BAD, claim_outbox, make_job, make_staged, make_worker, publish, record
from tests.support.workers import wait_until

BY = Requester("python", "somebody")
Step = Callable[[Conn], object]


def meet(url: str, stopped_at: str, row: Sequence[object], first: Step, second: Step) -> None:
    """`first` waits for a row, `second` for `first`; then both go on. Raises DeadlockDetected."""

    def run(step: Step) -> None:
        with connect(url) as conn:
            conn.execute("SET enable_seqscan = off" if step is first else "SET enable_indexscan = off")
            step(conn)

    with ThreadPoolExecutor(2) as pool, connect(url) as gate:
        with gate.transaction():
            gate.execute(f"SELECT FROM callboard.{stopped_at} FOR UPDATE", row)
            runs = [pool.submit(run, first)]
            assert wait_until(lambda: waiting(url) == 1, 300)
            runs.append(pool.submit(run, second))
            assert wait_until(lambda: waiting(url) == 2 or runs[1].done(), 300)
        for done in runs:
            done.result(300)


def ends(job: int, items: Sequence[int], *, worker: int = 1, ran: bool = False, ok: bool = False) -> Step:
    """What a flush does: these items have ended their first attempt."""
    now = time.monotonic()
    events = [
        Event(job, item, 1, "succeeded", 0.1, now, worker, ran=ran)
        if ok
        else Event(job, item, 1, "retrying", 0.1, now, worker, BAD, Retry(0.0), ran=ran)
        for item in items
    ]
    return lambda conn: outcomes.record(conn, events, now)


def drift(conn: Conn) -> Any:
    return queries.run(conn, queries.verify())["drift"]


def in_outbox(conn: Conn, job: int) -> list[int]:
    """Three messages, which lie in the reverse order of their items; their ids."""
    claims.park(conn, [(job, item, 1) for item in range(3)])
    reverse_rows(conn, "outbox")
    return [row[0] for row in conn.execute("SELECT id FROM callboard.outbox ORDER BY item")]


MIDDLE = "outbox WHERE job_id = %s AND item = 1"


def test_messages_that_could_not_be_sent_and_a_flush(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 3)
    ids = in_outbox(conn, job)
    unsent = [
        Outgoing(job, n, 1, 0, suspect=True, actor="", queue="", message_id="", args=b"", options=None,
                 sent_ms=None, outbox=id_)
        for n, id_ in enumerate(ids)
    ]  # fmt: skip
    meet(database_url, MIDDLE, [job], ends(job, range(3)), lambda c: publishing.release_outbox(c, unsent))
    assert drift(conn) == []


def test_messages_that_are_woken_and_a_flush(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 3)
    workers.stop_worker(conn, make_worker(conn))
    for item in range(3):
        claims.postpone(conn, job, item, 1, "work")
    reverse_rows(conn, "items", "outbox")
    make_worker(conn)
    meet(database_url, MIDDLE, [job], ends(job, range(3)), claims.make_postponed_due)
    assert drift(conn) == []


def test_lanes_that_go_by_another_argument_and_a_flush(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 3)
    in_outbox(conn, job)
    actions.limit(conn, job, BY, {"concurrency_by": "x=1"})
    conn.execute("UPDATE callboard.outbox SET lane = '1'")
    reverse_rows(conn, "outbox")
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    meet(database_url, MIDDLE, [job], ends(job, range(3)), lambda c: lanes.change_lanes(c, claim, []))
    assert conn.execute("SELECT count(*) FROM callboard.outbox WHERE lane IS NOT NULL").fetchone() == (0,)
    assert drift(conn) == []


def test_items_that_are_sent_again_and_a_flush(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 3)
    claims.park(conn, [(job, 1, 1)])
    again = [(2, 1), (0, 1)]
    meet(database_url, MIDDLE, [job], ends(job, range(3)), lambda c: sweep.republish(c, job, again))
    assert drift(conn) == []


def test_items_of_several_queues_that_are_sent_again_and_a_pause_of_their_job(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 3)
    conn.execute("UPDATE callboard.items SET queue = 'q' || item")
    claims.park(conn, [(job, item, 1) for item in range(3)])  # for their turns
    conn.execute("DELETE FROM callboard.outbox")
    conn.execute("UPDATE callboard.jobs SET in_turn = 0")
    reverse_rows(conn, "turns")
    lost = [(item, 1) for item in range(3)]
    meet(
        database_url, "turns WHERE job_id = %s AND queue = 'q1'", [job], lambda c: sweep.republish(c, job, lost),
        lambda c: actions.pause(c, job, BY),
    )  # fmt: skip
    assert broken_deadlocks(conn) == 0


def test_messages_of_several_jobs_that_could_not_be_sent_and_the_end_of_the_jobs(conn: Conn, database_url: str) -> None:
    """The turns of jobs that end together are locked as the plan of their update has it."""
    jobs = [make_job(conn, 1) for _ in range(3)]
    claims.park(conn, [(job, 0, 1) for job in jobs])
    unsent = [
        Outgoing(job, 0, 1, 0, suspect=True, actor="", queue="", message_id="", args=b"", options=None,
                 sent_ms=None, outbox=id_)
        for job, id_ in conn.execute("SELECT job_id, id FROM callboard.outbox ORDER BY job_id")
    ]  # fmt: skip
    conn.execute("UPDATE callboard.outbox SET claimed_until = now() + interval '1 h'")
    conn.execute("UPDATE callboard.jobs SET stopping = 'cancelled', control_at = now() - interval '1 h'")
    reverse_rows(conn, "jobs")

    def close(other: Conn) -> None:
        other.execute("SET enable_seqscan = on; SET enable_nestloop = off; SET enable_mergejoin = off")
        close_stopped(other)

    meet(database_url, "turns WHERE job_id = %s", [jobs[1]], close, lambda c: publishing.release_outbox(c, unsent))
    assert broken_deadlocks(conn) == 0


def test_items_that_are_set_aside_and_a_flush(conn: Conn, database_url: str) -> None:
    """A publisher that died had sent them, beyond the watermark."""
    job = make_job(conn, 3, published=0)
    worker = make_worker(conn)
    outcomes.report_running(conn, worker, [Running(job, 1, 1, 1.0, None)])
    actions.limit(conn, job, BY, {"concurrency_by": "x=1"})
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    aside = [(item, "") for item in range(3)]
    meet(
        database_url, "running WHERE job_id = %s", [job], ends(job, [1], worker=worker, ran=True),
        lambda c: lanes.move_to_outbox(c, claim, 0, 3, aside),
    )  # fmt: skip
    assert drift(conn) == []


def test_where_attempts_hang_and_what_is_in_hand(conn: Conn, database_url: str) -> None:
    """Two workers have copies of the same messages. Each passes by what the other has locked, and looks again."""
    job = make_job(conn, 3)
    worker, other = make_worker(conn), make_worker(conn)
    copies = [Running(job, item, 1, 1.0, None) for item in range(3)]
    outcomes.report_running(conn, worker, copies)
    reverse_rows(conn, "running")
    hung = [Running(job, item, 1, 1.0, None, None, "here", "there") for item in range(3)]
    meet(
        database_url, "running WHERE job_id = %s AND item = 1", [job],
        lambda c: outcomes.report_running(c, other, copies), lambda c: outcomes.report_running(c, worker, hung),
    )  # fmt: skip
    assert len(outcomes.report_running(conn, worker, hung)) == 3
    assert conn.execute("SELECT count(*) FROM callboard.running WHERE place = 'here'").fetchone() == (3,)


def test_lanes_of_what_is_over_and_a_job_that_leaves(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 3)
    conn.execute("INSERT INTO callboard.lanes SELECT job_id, item, '' FROM callboard.items ORDER BY item DESC")
    ends(job, range(3), ok=True)(conn)
    assert retention.mark_deleted(conn, [job])
    meet(
        database_url, "lanes WHERE job_id = %s AND item = 1", [job],
        lambda c: list(retention.delete_rows(c, job)), sweep.drop_messages_of_ended_jobs,
    )  # fmt: skip
    assert conn.execute("SELECT count(*) FROM callboard.lanes").fetchone() == (0,)


def test_nobody_publishes_by_lane_what_is_over(conn: Conn) -> None:
    """Or it would wait for lanes of a job that may be leaving, and who clears that away for the job."""
    job = make_job(conn, 1)
    actions.limit(conn, job, BY, {"concurrency_by": "x=1"})
    claims.park(conn, [(job, 0, 1)])
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    ends(job, [0], ok=True)(conn)
    with pytest.raises(lanes.ClaimTakenOver):
        lanes.claim_lanes(conn, claim, 1)


def test_an_outcome_that_waits_for_its_message_to_be_settled(conn: Conn, database_url: str) -> None:
    """The job's row, as the outcome's statement saw it at first, has no room for what it adds."""
    job = make_job(conn, 1)
    ends(job, [0])(conn)
    out = claim_outbox(conn, 1)
    now = time.monotonic()
    end = Event(job, 0, 2, "succeeded", 0.1, now, 1)
    with ThreadPoolExecutor(1) as pool, connect(database_url) as other:
        with conn.transaction():
            publishing.confirm_outbox(conn, out)
            recorded = pool.submit(outcomes.record, other, [end], now)
            assert wait_until(lambda: waiting(database_url) == 1, 300)
        assert [told.state for told in recorded.result(300)] == ["completed"]
    assert drift(conn) == []


# What is over and goes on -------------------------------------------------------------------------------------------


def stop(conn: Conn, job: int) -> None:
    """Cancel a job of which nothing is in hand."""
    actions.cancel(conn, job, BY)
    conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 h'")
    close_stopped(conn)
    stages.update_parents(conn)


def test_a_retry_and_what_a_cancelled_job_still_had_in_hand(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 4)
    make_worker(conn)
    now = time.monotonic()
    outcomes.record(conn, [Event(job, 3, 1, "failed", 0.1, now, 1, BAD)], now)
    stop(conn, job)
    meet(
        database_url, "items WHERE job_id = %s AND item = 1", [job], ends(job, range(3), ok=True),
        lambda c: retry_action.retry(c, job, BY, RetrySelection(("failed",))),
    )  # fmt: skip
    assert broken_deadlocks(conn) == 0
    assert drift(conn) == []


def test_a_retry_and_a_dead_letter_that_is_settled(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 2)
    now = time.monotonic()
    events = [Event(job, item, 1, "failed", 0.1, now, 1, BAD, dead=True) for item in range(2)]
    outcomes.record(conn, events, now)
    out = claim_outbox(conn, 10)
    assert [one.dead for one in out] == [True, True]
    meet(
        database_url, MIDDLE, [job], lambda c: publishing.confirm_outbox(c, out),
        lambda c: retry_action.retry(c, job, BY, RetrySelection()),
    )  # fmt: skip
    assert broken_deadlocks(conn) == 0
    assert drift(conn) == []


def test_a_dead_letter_that_is_settled_does_not_wait_for_the_row_of_its_job(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 2)
    now = time.monotonic()
    outcomes.record(conn, [Event(job, item, 1, "failed", 0.1, now, 1, BAD, dead=True) for item in range(2)], now)
    out = claim_outbox(conn, 10)
    with connect(database_url) as flush, flush.transaction(), conn.transaction():
        flush.execute("SELECT FROM callboard.jobs WHERE id = %s FOR NO KEY UPDATE", [job])
        conn.execute("SET LOCAL lock_timeout = '100ms'")
        publishing.confirm_outbox(conn, out)
    assert conn.execute("SELECT FROM callboard.outbox").rowcount == 0
    assert drift(conn) == []


def test_a_retry_and_first_messages_that_are_settled(conn: Conn, database_url: str) -> None:
    """Sent before their job was cancelled, confirmed after."""
    job = make_job(conn, 3)
    in_outbox(conn, job)
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    out = publishing.claim_in_turn(conn, claim, 3)
    publishing.advance_watermark(conn, claim, watermark=3, published=0, keep=False)
    stop(conn, job)
    meet(
        database_url, MIDDLE, [job], lambda c: publishing.confirm_outbox(c, out),
        lambda c: retry_action.retry(c, job, BY, RetrySelection(("cancelled",))),
    )  # fmt: skip
    assert broken_deadlocks(conn) == 0
    assert drift(conn) == []


def staged(conn: Conn) -> tuple[int, list[int]]:
    """Three stages, each with an item in hand; cancelled."""
    planned = [PlannedStage(f"s{n}", "work", "default", None, "go on") for n in range(3)]
    parent, found = stages.create(
        conn, planned, name="staged", key=None, tenant="", metadata={}, created_by=None, limits=NO_LIMITS
    )
    for stage in found:
        submission.store_chunk(conn, stage.id, 0, [(b"{}", None)], keyed=False)
        publish(conn, stage.id, 1)
    submission.seal_job(conn, found[0].id)
    submission.seal_job(conn, found[1].id)
    stop(conn, parent)
    return parent, [stage.id for stage in found]


def late(jobs: Sequence[int]) -> Step:
    """What was in hand of several jobs ended after them."""
    now = time.monotonic()
    events = [Event(job, 0, 1, "succeeded", 0.1, now, 1) for job in jobs]
    return lambda conn: outcomes.record(conn, events, now)


@pytest.mark.parametrize("what", ["leaves", "is due", "is retried"])
def test_a_job_of_stages_and_late_outcomes(what: str, conn: Conn, database_url: str) -> None:
    parent, jobs = staged(conn)
    reverse_rows(conn, "jobs")
    steps: dict[str, Step] = {
        "leaves": lambda c: retention.mark_deleted(c, [parent]),
        "is due": lambda c: retention.mark_expired(c, 0.0),
        "is retried": lambda c: retry_action.retry(c, parent, BY, RetrySelection(("cancelled",))),
    }
    meet(database_url, "jobs WHERE id = %s", [jobs[1]], late(jobs), steps[what])
    assert broken_deadlocks(conn) == 0
    if what == "is due":
        assert retention.mark_expired(conn, 0.0) == [parent, *jobs]
    assert drift(conn) == []


def test_who_waits_for_a_job_after_the_clock_was_set_back_has_locked_no_message(conn: Conn, database_url: str) -> None:
    """A flush that has the job's row writes messages, and so waits for whoever has one of them."""
    job = make_job(conn, 1, published=1)
    conn.execute(
        "INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)"
        " VALUES (%s, 0, 2, now() + interval '1 h', false)",
        [job],
    )
    conn.execute("UPDATE callboard.jobs SET updated_at = updated_at + interval '1 h'")

    def follow() -> None:
        with connect(database_url) as swept:
            sweep.follow_clock_set_back(swept, 3_600)

    with ThreadPoolExecutor(1) as pool:
        with connect(database_url) as flush, flush.transaction():
            flush.execute("SELECT FROM callboard.jobs FOR NO KEY UPDATE")
            followed = pool.submit(follow)
            assert wait_until(lambda: waiting(database_url) == 1, 300)
            for table in ("turns", "outbox"):
                assert flush.execute(f"SELECT FROM callboard.{table} FOR UPDATE NOWAIT").rowcount
        followed.result(300)
    assert conn.execute("SELECT FROM callboard.outbox WHERE due_at > now()").rowcount == 0


def test_who_moves_messages_after_the_clock_was_set_back_waits_for_no_turn(conn: Conn, database_url: str) -> None:
    """A flush has the turn of the limited job, an item of which has ended, and waits for that of the job that ends."""
    ends_now, limited, last = jobs = [make_job(conn, items) for items in (1, 2, 1)]
    actions.limit(conn, limited, BY, {"concurrency": 5})
    conn.cursor().executemany(
        "INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)"
        " SELECT %s, max(item), 2, now() + interval '1 h', false FROM callboard.items WHERE job_id = %s",
        [[job, job] for job in jobs],
    )
    conn.execute("UPDATE callboard.turns SET due_at = now() WHERE job_id = %s", [limited])
    conn.execute("UPDATE callboard.jobs SET submitting_until = NULL")
    meet(
        database_url, "turns WHERE job_id = %s", [last], lambda c: sweep.follow_clock_set_back(c, 3_600),
        late([ends_now, limited]),
    )  # fmt: skip
    assert broken_deadlocks(conn) == 0
    assert conn.execute("SELECT FROM callboard.outbox WHERE due_at > now()").rowcount == 0
    assert drift(conn) == []


def test_a_retry_leaves_what_was_retried_before_alone(conn: Conn, database_url: str) -> None:
    """Their failed attempts are still there, of a million items as of one."""
    parent, (stage, _) = make_staged(conn)
    assert retry_action.retry(conn, parent, BY, RetrySelection()) == 2
    record(conn, stage, {"failed": [9]}, attempt=2)
    with connect(database_url) as flush, flush.transaction():
        flush.execute("SELECT FROM callboard.items WHERE job_id = %s AND item = 8 FOR UPDATE", [stage])
        conn.execute("SET lock_timeout = '5s'")
        assert retry_action.retry(conn, parent, BY, RetrySelection()) == 1


def test_a_job_that_changed_while_its_deletion_waited_for_it_is_deleted_with_its_stages(
    conn: Conn, database_url: str
) -> None:
    parent, staged = make_staged(conn)
    actions.cancel(conn, parent, BY)
    stages.update_parents(conn)
    everything = sorted([parent, *staged])
    conn.execute("UPDATE callboard.jobs SET state = 'cancelled', sealed = true, finished_at = now(), stopping = NULL")
    conn.execute(  # so many that a plan reads those that it wants by an index
        "INSERT INTO callboard.jobs (name, actor, queue, state, sealed, finished_at)"
        " SELECT 'old', 'old', 'default', 'completed', true, now() FROM generate_series(1, 3000)"
    )
    conn.execute("ANALYZE callboard.jobs")
    with connect(database_url) as own, connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            other.execute("UPDATE callboard.jobs SET updated_at = now() WHERE id = ANY(%s)", (everything,))
            marked = pool.submit(retention.mark_deleted, own, [parent])
            assert wait_until(lambda: waiting(database_url) == 1, 300)
        assert marked.result(300) == everything


@pytest.mark.parametrize("copy", ["copy_items", "copy_to_staging"])
def test_a_submitter_that_stands_still_in_a_copy_lets_go_of_its_job(
    copy: str, conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL cancels no statement that waits for the rest of a COPY, so the job would be locked for as long."""
    job = make_job(conn, 0, sealed=False)
    with connect(database_url) as other, suppress(psycopg.OperationalError), transaction(other):
        submission.lock(other, job)
        execute(other, "create_staging_table")
        with other.cursor().copy(statement(copy)) as frozen:
            frozen.write(submission.COPY_BEGIN)
            assert sweep.end_frozen_copies(conn) == 0
            monkeypatch.setattr(timings, "COPY_LIMIT_SECONDS", 0.0)
            assert wait_until(lambda: sweep.end_frozen_copies(conn) > 0, 300)
            with transaction(conn):
                assert submission.lock(conn, job)
