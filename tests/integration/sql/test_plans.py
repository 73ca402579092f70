"""What statements read once tables have grown: as if they had been prepared then.

On tables of a page or two PostgreSQL reads them whole, and keeps that plan for a prepared statement. Each statement
here is prepared on such tables, on a connection of its own: psycopg forgets what it prepared with the first ROLLBACK.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import Any, cast

import psycopg
import pytest

from callboard.middleware.sweep.sweep import Sweep
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import Event, NewItem, OutcomeState, Outgoing, PublishClaim, Retry, Running
from callboard.sql.writes import (
    callbacks,
    claims,
    jobs,
    lanes,
    outcomes,
    publishing,
    retention,
    retry_action,
    sends,
    stages,
    submission,
    sweep,
    workers,
)
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.databases import WORKING, clerk, database, with_database
from tests.support.jobs import ARGS, BAD, NOT_NEEDED, claim_outbox, make_job, make_worker, publish, record, run, send
from tests.support.transports import StubTransport
from tests.support.workers import wait_until

#: Items that a statement has to do with at once.
SOME = 5
#: Blocks, when it takes far too long.
NO_END = 2**31
#: Items of a job that has grown.
MANY = 10_000
FAILURES = {"failed": BAD, "retrying": BAD, "skipped": NOT_NEEDED}
BLOCKS = (
    "SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM pg_class"
    " WHERE relnamespace = 'callboard'::regnamespace"
)
STALE = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'callboard'::regnamespace AND relkind = 'r'"
    " AND pg_relation_size(oid) / 8192 > 4 * greatest(relpages, 0) + 8"
)


Try = Callable[[Conn, "Stage"], object]


@dataclass(slots=True)
class Stage:
    """Jobs, and from which item on nobody has touched theirs."""

    conn: Conn
    worker: int = field(init=False)
    bulk: int = field(init=False)
    plain: int = field(init=False)
    limited: int = field(init=False)
    laned: int = field(init=False)
    first: int = 0
    blocks_before: int = 0  # that the connection had read when the statement in question began

    def __post_init__(self) -> None:
        self.worker = make_worker(self.conn)
        self.bulk = make_job(self.conn, SOME, published=1, sealed=False)
        self.plain = make_job(self.conn, 0, sealed=False)
        self.limited = make_job(self.conn, SOME, sealed=False)
        self.laned = make_job(self.conn, SOME, published=1, sealed=False)
        send(self.conn, self.plain, 0)
        run(self.conn, self.bulk, [0], worker=self.worker)
        record(self.conn, self.limited, {"retrying": [0]}, delay=0.0, worker=self.worker)
        set_limits = "UPDATE callboard.jobs SET concurrency = %s, lane_by = %s, lane_width = %s WHERE id = %s"
        self.conn.execute(set_limits, (10 * MANY, None, None, self.limited))
        self.conn.execute(set_limits, (None, "0", 2, self.laned))
        for table in self._tables():
            self.conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
        self.conn.execute(b"VACUUM (ANALYZE) " + ", ".join(self._tables()).encode())

    def _tables(self) -> list[str]:
        found = "SELECT 'callboard.' || tablename FROM pg_tables WHERE schemaname = 'callboard'"
        return [row[0] for row in self.conn.execute(found)]

    @property
    def some(self) -> range:
        """Items of each job."""
        return range(self.first, self.first + SOME)

    def settle(self) -> None:
        """Give back what a statement that was tried has claimed, and rewrite no other row: while any transaction of the
        server is open, old versions of rows may stay, and each is read.
        """
        for table, claim in (("jobs", "publish_until"), ("outbox", "claimed_until")):
            self.conn.execute(f"UPDATE callboard.{table} SET {claim} = NULL WHERE {claim} IS NOT NULL".encode())

    def grow(self) -> None:
        """Many of everything."""
        for job in (self.bulk, self.limited, self.laned):
            submission.store_chunk(self.conn, job, SOME, [(ARGS, None)] * MANY, keyed=False)
        publish(self.conn, self.bulk, MANY // 2)
        publish(self.conn, self.limited, MANY)
        record(self.conn, self.bulk, {"failed": range(MANY // 4, MANY // 2)}, worker=self.worker)
        run(self.conn, self.bulk, range(200, 260), worker=self.worker)
        add = [_sent(self.plain, n) for n in range(1_000, MANY)]
        sends.add_items(self.conn, add, publishing=False)
        record(self.conn, self.limited, {"retrying": range(SOME, MANY // 2)}, delay=0.0, worker=self.worker)
        claim = claim_of(self.conn, self.laned)
        start = claim.watermark
        lanes.move_to_outbox(self.conn, claim, start, MANY, [(n, str(n % 50)) for n in range(start, MANY)])
        for _ in range(5):
            make_job(self.conn, MANY // 5)
        for statement in OLD:
            self.conn.execute(statement, (MANY // 2,))
        self.settle()
        self.first = 100

    def analyze(self) -> None:
        """Tell the planner everything."""
        self.conn.execute(b"VACUUM (ANALYZE) " + ", ".join(self._tables()).encode())


OLD = (
    """
    INSERT INTO callboard.jobs (name, state, sealed, started_at, finished_at, control_at)
    SELECT 'old', 'completed', true, now(), now(), now() - interval '1 hour' FROM generate_series(1, %s)
    """,
    """
    INSERT INTO callboard.samples (job_id, final, failed)
    SELECT id, 0, 0 FROM callboard.jobs WHERE name = 'old' LIMIT %s
    """,
    """
    INSERT INTO callboard.workers (pid, threads, host, actors, queues, stopped_at)
    SELECT 1, 8, 'h', '{work}', '{default}', now() FROM generate_series(1, %s)
    """,
)


def _sent(job: int, number: int) -> NewItem:
    return NewItem(job, "work", "default", f"m-{number}", ARGS, None, 5, key=f"k-{number}")


# What is tried -------------------------------------------------------------------------------------------------------


def claim_of(conn: Conn, job: int) -> PublishClaim:
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    return claim


def _record(conn: Conn, stage: Stage) -> None:
    now = time.monotonic()
    ends = cycle(cast("list[OutcomeState]", ["succeeded", "failed", "retrying", "skipped"]))
    child = (NewItem(stage.bulk, "work", "default", "a child", ARGS, None, 5),)
    events = [
        Event(job, item, 1, end, 0.01, now, stage.worker, FAILURES.get(end),
              Retry(5.0) if end == "retrying" else None, ran=True, children=child)
        for job in (stage.bulk, stage.laned) for item, end in zip(stage.some, ends, strict=False)
    ]  # fmt: skip
    outcomes.record(conn, events, now)


def _claimed(conn: Conn) -> list[Outgoing]:
    return claim_outbox(conn, SOME)


def _settling(settle: Callable[[Conn, list[Outgoing]], object]) -> Try:
    """Claim messages, and count from there."""

    def claim_and_settle(conn: Conn, stage: Stage) -> None:
        claimed = _claimed(conn)
        stage.blocks_before = _number(conn)
        settle(conn, claimed)

    return claim_and_settle


def _renew_outbox(conn: Conn, stage: Stage) -> None:
    """Claim rows, which reads much, and count from there."""
    rows = conn.execute(
        "UPDATE callboard.outbox SET claimed_until = now() + interval '1 min'"
        " WHERE id IN (SELECT id FROM callboard.outbox ORDER BY id LIMIT %s) RETURNING job_id, item, attempt, id",
        (SOME,),
    )
    claimed = [
        Outgoing(
            job, item, attempt, 0, suspect=False, actor="work", queue="default", message_id="", args=b"", options=None,
            sent_ms=None, outbox=number,
        )
        for job, item, attempt, number in rows
    ]  # fmt: skip
    stage.blocks_before = _number(conn)
    publishing.renew_outbox(conn, claimed)


def _bulk_items(conn: Conn, stage: Stage) -> None:
    publishing.bulk_items(conn, claim_of(conn, stage.bulk), stage.first, stage.first + SOME)


def _publish_bulk(conn: Conn, stage: Stage) -> None:
    claim = claim_of(conn, stage.bulk)
    publishing.advance_watermark(conn, claim, watermark=claim.watermark, published=0, keep=False)


def _set_aside(conn: Conn, stage: Stage) -> None:
    claim = claim_of(conn, stage.laned)
    start = claim.watermark
    lanes.move_to_outbox(conn, claim, start, start + 1, [(start, "a")])


def _tell_lanes(conn: Conn, stage: Stage) -> None:
    claim = claim_of(conn, stage.laned)
    lanes.set_lanes(conn, claim, [(number, "b") for number, _ in lanes.messages_without_lane(conn, claim, SOME)])


def _leased(conn: Conn, stage: Stage) -> list[Outgoing]:
    """Sends of a process that has leases of them."""
    new = [replace(_sent(stage.plain, n), key=None) for n in range(SOME)]
    places = [place for place in sends.add_items(conn, new, publishing=True) if place]
    made = Outgoing(
        stage.plain,
        0,
        1,
        0,
        suspect=False,
        actor="work",
        queue="default",
        message_id="",
        args=b"",
        options=None,
        sent_ms=None,
    )
    return [replace(made, item=item, lease=lease) for item, lease in places]


def _joined(conn: Conn, stage: Stage) -> None:
    """A send alone, under a lease of others."""
    lease = _leased(conn, stage)[0].lease or 0
    [place] = sends.add_items(conn, [replace(_sent(stage.plain, 0), key=None)], publishing=True, leases=[lease])
    assert place
    assert place[1] == lease


def _queue_lapsed_sends(conn: Conn, stage: Stage) -> None:
    leases = list({out.lease or 0 for out in _leased(conn, stage)})
    conn.execute("UPDATE callboard.send_leases SET ends_at = now() WHERE id = ANY (%s)", (leases,))
    assert sends.lapsed_send_leases(conn)
    assert sends.queue_lapsed_sends(conn, stage.plain, leases)


def _report_running(conn: Conn, stage: Stage) -> None:
    hung = range(200, 200 + SOME) if stage.first else [0]
    running = [Running(stage.bulk, item, 1, 1.0, "a step") for item in stage.some if item not in hung]
    stand = [Running(stage.bulk, item, 1, 1.0, None, None, "a.py:1", "…") for item in hung]
    outcomes.report_running(conn, stage.worker, running + stand)


def _overtaken(conn: Conn, _: Stage) -> None:
    mark = sweep.publish_mark(conn, 20)
    assert mark
    sweep.passed_mark(conn, "default", mark)


#: Of the many that fare so. The outbox has the planner learn of what it is given.
HARMED = ("bulk_items",)
#: They look at each lane, and at every message of a job.
READS_MUCH = {"set_lanes", "claim_lanes"}
TRIED: dict[str, Try] = {
    "record": _record,
    "claim_item": lambda c, s: claims.claim_item(c, s.bulk, s.first + 1, 1, s.worker),
    "release_item": lambda c, s: claims.release_item(c, s.bulk, s.first + 2, 1, s.worker),
    "postpone": lambda c, s: claims.postpone(c, s.bulk, s.first + 3, 1, "work"),
    "make_postponed_due": lambda c, _: claims.make_postponed_due(c),
    "report_running": _report_running,
    "touch_jobs": lambda c, s: outcomes.touch_jobs(c, {s.bulk: ("a step", 0.5), s.plain: (None, 0.0)}),
    "job_controls": lambda c, _: workers.job_controls(c, 20.0),
    "park": lambda c, s: claims.park(c, [(s.limited, item, 2 if s.first else 1) for item in s.some]),
    "beat": lambda c, s: workers.beat(c, s.worker, [(s.bulk, 1)]),
    "dead_workers": lambda c, _: workers.dead_workers(c),
    "running_rows": lambda c, s: workers.running_rows(c, s.worker + 1),
    "standing_job": lambda c, _: sends.standing_job(c, "work", "default"),
    "lock_for_keys": lambda c, s: sends.lock_for_keys(c, [s.plain], ["work"]),
    "items_by_key": lambda c, s: sends.items_by_key(c, [("work", f"k-{n}", s.plain, False) for n in s.some]),
    "add_items": _leased,
    "add_item": _joined,
    "queue_sends": lambda c, s: sends.queue_sends(c, _leased(c, s)),
    "end_lapsed_send_leases": _queue_lapsed_sends,
    "renew_send_leases": lambda c, s: sends.renew_send_leases(c, [out.lease or 0 for out in _leased(c, s)]),
    "end_send_leases": lambda c, s: sends.end_send_leases(c, [out.lease or 0 for out in _leased(c, s)]),
    "renew_submissions": lambda c, s: submission.renew_submissions(c, [s.plain]),
    "claim_job": lambda c, _: publishing.claim_job(c),
    "claim_in_turn": lambda c, s: publishing.claim_in_turn(c, claim_of(c, s.limited), SOME),
    "bulk_items": _bulk_items,
    "advance_watermark": _publish_bulk,
    "claim_outbox": lambda c, _: _claimed(c),
    "confirm_outbox": _settling(publishing.confirm_outbox),
    "renew_outbox": _renew_outbox,
    "release_outbox": _settling(partial(publishing.release_outbox, pause=1.0)),
    "move_to_outbox": _set_aside,
    "claim_lanes": lambda c, s: lanes.claim_lanes(c, claim_of(c, s.laned), SOME),
    "set_lanes": _tell_lanes,
    "items_in_flight": lambda c, s: lanes.items_in_flight(c, claim_of(c, s.laned), -1),
    "count_in_flight": lambda c, s: lanes.count_in_flight(c, claim_of(c, s.laned)),
    "stop_overdue_jobs": lambda c, _: jobs.stop_overdue_jobs(c),
    "close_stopped": lambda c, _: jobs.close_stopped(c),
    "close_jobs": lambda c, _: jobs.close_jobs(c),
    "fail_abandoned_submissions": lambda c, _: submission.fail_abandoned_submissions(c),
    "standing_jobs_to_seal": lambda c, _: sweep.standing_jobs_to_seal(c),
    "sample_jobs": lambda c, _: sweep.sample_jobs(c),
    "drop_messages_of_ended_jobs": lambda c, _: sweep.drop_messages_of_ended_jobs(c),
    "open_jobs": lambda c, _: sweep.open_jobs(c, 10.0),
    "drop_unheld_running": lambda c, _: sweep.drop_unheld_running(c),
    "unheld_items": lambda c, s: sweep.unheld_items(c, [(s.bulk, s.first, s.first + 50)], SOME),
    "oldest_heartbeat_seconds": lambda c, _: sweep.oldest_heartbeat_seconds(c),
    "passed_mark": _overtaken,
    "republish": lambda c, s: sweep.republish(c, s.bulk, [(item, 1) for item in s.some]),
    "follow": lambda c, _: stages.update_parents(c),
    "claim_callbacks": lambda c, _: callbacks.claim_callbacks(c, webhooks=True, limit=SOME),
    "mark_due": lambda c, _: retention.mark_expired(c, 1e9),
    "job": lambda c, s: queries.run(c, queries.job(s.bulk)),
    "jobs": lambda c, _: queries.run(c, queries.jobs(limit=SOME)),
    "items": lambda c, s: queries.run(c, queries.items(s.bulk, after=s.first, limit=SOME)),
    "attempts": lambda c, s: queries.run(c, queries.attempts(s.bulk, 0)),
    "errors": lambda c, s: queries.run(c, queries.errors(s.bulk)),
}


# The measurement -----------------------------------------------------------------------------------------------------


def opened(url: str) -> Conn:
    """A connection on which a plan is kept from the first call on, as else after a dozen."""
    conn = connect(url)
    conn.prepare_threshold = 0
    conn.execute("SET plan_cache_mode = force_generic_plan")
    conn.execute("SET statement_timeout = '10s'")
    return conn


def prepared(url: str, tried: Try, stage: Stage) -> Conn:
    """One on which this statement has its plan."""
    conn = opened(url)
    with conn.transaction():
        tried(conn, stage)
    stage.settle()
    return conn


def read(conn: Conn, tried: Try, stage: Stage, runs: int = 1) -> int:
    """Blocks of tables and indexes that it reads, or NO_END; what it did is undone.

    The least of several runs: the first may have the outbox analyzed, and the second plan anew after that.
    """
    with suppress(psycopg.errors.QueryCanceled), conn:
        return min(_read(conn, tried, stage) for _ in range(runs))
    return NO_END


def _read(conn: Conn, tried: Try, stage: Stage) -> int:
    with conn.transaction(force_rollback=True):
        stage.blocks_before = _number(conn)
        tried(conn, stage)
        return _number(conn) - stage.blocks_before


def _number(conn: Conn) -> int:
    row = conn.execute(BLOCKS).fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True, slots=True)
class Measured:
    """Blocks that each statement reads on grown tables: with the plan of tiny ones as long as nobody has told the
    planner, after a round of the sweep, and prepared when all is known.
    """

    untold: dict[str, int]
    told: dict[str, int]
    now: dict[str, int]


@pytest.fixture(scope="module")
def measured(postgres_url: str, template: str) -> Measured:
    with database(postgres_url, template) as name, psycopg.connect(postgres_url) as other:
        # While any transaction of the server is open, no statement clears away rows that another has left, and all read
        # more. So one always is.
        other.execute("SELECT pg_current_xact_id()")
        url = with_database(postgres_url, name)
        with connect(url) as conn:
            return measure(url, conn)


def measure(url: str, conn: Conn) -> Measured:
    ours = "FROM pg_class WHERE relnamespace = 'callboard'::regnamespace AND relkind = 'r'"
    for (table,) in conn.execute("SELECT oid::regclass::text " + ours).fetchall():
        # It would hold a table while the sweep is about to analyze that.
        conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    stage = Stage(conn)
    first = {name: prepared(url, TRIED[name], stage) for name in HARMED}
    then = {name: prepared(url, tried, stage) for name, tried in TRIED.items()}
    stage.grow()
    untold = {name: read(kept, TRIED[name], stage) for name, kept in first.items()}
    unused: Any = None
    Sweep(unused, StubTransport).round(conn)
    told = {name: read(kept, TRIED[name], stage, 3) for name, kept in then.items()}
    stage.analyze()
    return Measured(untold, told, {name: read(opened(url), tried, stage) for name, tried in TRIED.items()})


@pytest.mark.parametrize("name", HARMED)
def test_the_plan_of_a_tiny_table_reads_all_of_a_large_one(name: str, measured: Measured) -> None:
    """Else there were nothing to mend."""
    assert measured.untold[name] > measured.now[name] + 300


@pytest.mark.parametrize("name", TRIED)
def test_once_the_sweep_has_looked_a_plan_is_as_good_as_a_new_one(name: str, measured: Measured) -> None:
    assert measured.told[name] <= 2 * measured.now[name] + 200


@pytest.mark.parametrize("name", sorted(set(TRIED) - READS_MUCH))
def test_what_a_statement_reads_does_not_depend_on_the_size_of_tables(name: str, measured: Measured) -> None:
    assert measured.told[name] <= 90 * SOME


def test_a_large_retry_is_claimed_and_confirmed_at_once(postgres_url: str, template: str) -> None:
    """With the plans that a publisher has kept of an empty outbox; a claim of 1,000 of 400,000 took over 93 s. The role
    does not own the tables.
    """
    with (
        database(postgres_url, template) as name,
        connect(with_database(postgres_url, name)) as conn,
        clerk(conn, *WORKING) as role,
    ):
        conn.execute("ALTER TABLE callboard.outbox SET (autovacuum_enabled = off)")
        job = make_job(conn, MANY)
        record(conn, job, {"failed": range(MANY)})
        conn.execute("VACUUM (ANALYZE) callboard.outbox")
        publisher = opened(with_database(postgres_url, name))
        for session in (conn, publisher):
            session.execute(f"SET ROLE {role}".encode())

        def publish_again() -> int:
            claim = publishing.claim_given_job(publisher, job)
            sent = publishing.claim_in_turn(publisher, claim, 1_000) if claim else []
            publishing.confirm_outbox(publisher, sent)
            if claim:
                publishing.advance_watermark(publisher, claim, watermark=MANY, published=0, keep=False)
            return len(sent)

        assert publish_again() == 0
        publishing.claim_in_turn(publisher, PublishClaim(job, 0, 0, 0, 0, 0, "", ""), 1_000)
        publishing.confirm_outbox(publisher, [])
        retry_action.retry(conn, job, Requester("python"), RetrySelection())
        row = conn.execute("SELECT last_analyze IS NOT NULL, relpages > 50 FROM pg_stat_user_tables AS s"
                           " JOIN pg_class AS c ON c.oid = s.relid WHERE s.relname = 'outbox'").fetchone()  # fmt: skip
        assert row == (True, True)
        publisher.execute("SET statement_timeout = '3s'")
        assert publish_again() == 1_000
        publisher.close()


@pytest.mark.parametrize("selection", [RetrySelection(), RetrySelection(items=[5])], ids=["failed", "an item"])
def test_a_retry_reads_the_items_that_it_gives_another_attempt(conn: Conn, selection: RetrySelection) -> None:
    """Of a job that is over; one item of 10,000,000 took 40 s."""
    job = make_job(conn, MANY)
    record(conn, job, {"failed": [5], "succeeded": [n for n in range(MANY) if n != 5]})
    conn.execute("VACUUM (ANALYZE)")
    with conn.transaction():
        before = _number(conn)
        assert retry_action.retry(conn, job, Requester("python"), selection) == 1
        assert _number(conn) - before < MANY / 20


# Telling the planner -------------------------------------------------------------------------------------------------


def stale(conn: Conn) -> list[str]:
    """Tables of which the planner knows a small part."""
    return [row[0] for row in conn.execute(STALE)]


def fill(conn: Conn) -> None:
    for table in ("items", "outbox"):
        conn.execute(f"ALTER TABLE callboard.{table} SET (autovacuum_enabled = off)".encode())
    make_job(conn, 3_000)
    assert stale(conn) == ["items"]


def test_the_planner_is_told_of_a_table_once_it_has_grown(conn: Conn) -> None:
    fill(conn)
    sweep.analyze_grown_tables(conn)
    assert stale(conn) == []
    sweep.analyze_grown_tables(conn)
    times = "SELECT analyze_count FROM pg_stat_user_tables WHERE relname = 'items'"
    assert wait_until(lambda: conn.execute(times).fetchone() == (1,), 300)


EMPTIED = """
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)
SELECT %(job)s, n, 1, 'infinity', false FROM generate_series(100000, 110000) AS n;
DELETE FROM callboard.outbox WHERE item < 110000;
VACUUM (ANALYZE) callboard.outbox
"""
FILLING = """
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)
SELECT %(job)s, n, 1, 'infinity', false FROM generate_series(0, 2999) AS n
"""


def emptied_outbox(conn: Conn) -> int:
    """A job. The outbox has one row, at the end of many pages."""
    conn.execute("ALTER TABLE callboard.outbox SET (autovacuum_enabled = off)")
    job = make_job(conn, 1)
    for statement in EMPTIED.split(";\n"):
        conn.execute(statement.encode(), {"job": job})
    assert rows_known(conn) == 1
    return job


def rows_known(conn: Conn) -> float:
    """Rows of the outbox, as the planner estimates them."""
    row = conn.execute("SELECT reltuples FROM pg_class WHERE oid = 'callboard.outbox'::regclass").fetchone()
    assert row is not None
    return float(row[0])


def test_the_planner_learns_of_rows_that_fill_the_pages_of_deleted_ones(conn: Conn) -> None:
    job = emptied_outbox(conn)
    conn.execute(FILLING, {"job": job})
    assert rows_known(conn) == 3_001


def test_the_planner_learns_of_rows_that_were_analyzed_before_their_commit(conn: Conn, database_url: str) -> None:
    """The retry of very many items is a long transaction, and autovacuum counts none of its rows."""
    job = emptied_outbox(conn)
    with connect(database_url) as other, other.transaction():
        other.execute("ALTER TABLE callboard.outbox DISABLE TRIGGER add_turns")
        other.execute(FILLING, {"job": job})
    conn.execute("UPDATE pg_class SET reltuples = 1 WHERE oid = 'callboard.outbox'::regclass")
    live = "SELECT pg_stat_get_live_tuples('callboard.outbox'::regclass)"
    assert wait_until(lambda: conn.execute(live).fetchone() == (3_001,), 300)
    sweep.analyze_grown_tables(conn)
    assert rows_known(conn) == 3_001


def test_a_table_that_somebody_vacuums_is_not_waited_for(conn: Conn, database_url: str) -> None:
    fill(conn)
    with connect(database_url) as other, other.transaction():
        other.execute("LOCK TABLE callboard.items IN SHARE UPDATE EXCLUSIVE MODE")
        conn.execute("SET lock_timeout = '1ms'")
        sweep.analyze_grown_tables(conn)
        assert stale(conn) == ["items"]
    sweep.analyze_grown_tables(conn)
    assert stale(conn) == []


def test_the_planner_is_told_by_a_role_that_does_not_own_the_tables(conn: Conn) -> None:
    fill(conn)
    with clerk(conn, "USAGE ON SCHEMA callboard") as role:
        conn.execute(f"SET ROLE {role}".encode())
        sweep.analyze_grown_tables(conn)
    assert stale(conn) == []
