"""The statements of the tracking path on a real database, in any order: nothing is counted twice, nothing is stranded.

A hypothesis state machine plays workers, publishers, the sweep and RabbitMQ at once, with duplicates, stale attempts,
deaths and takeovers; after every step a recount finds no drift.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from callboard.middleware.attempts.claim import claim
from callboard.middleware.journal.counter_repair import repair_counters
from callboard.middleware.journal.journal import Entry, Journal
from callboard.middleware.journal.rescue import rescue, rescue_of_host
from callboard.middleware.message.envelope import encode_args
from callboard.middleware.process.run_file import DeadProcess, RunFile
from callboard.sql import timings
from callboard.sql.pool import Conn, connect, transaction
from callboard.sql.reads import queries
from callboard.sql.rows import Event, Failure, NewItem, OutcomeState, Outgoing, PublishClaim, Retry, Running
from callboard.sql.states import FINAL, MOVES
from callboard.sql.writes import outcomes, publishing, sends, submission, sweep
from callboard.sql.writes.claims import claim_item, release_item
from callboard.sql.writes.jobs import close_jobs
from callboard.sql.writes.workers import beat, dead_workers
from tests.support.databases import waits
from tests.support.deliveries import make_attempt
from tests.support.jobs import BAD, NOT_NEEDED, claim_outbox, make_job, make_worker, record, unheld
from tests.support.process_parts import RecordedAttempts, process_on
from tests.support.workers import wait_until

FAILURES: dict[str, Failure] = {"failed": BAD, "retrying": BAD, "skipped": NOT_NEEDED}
ENDS: Any = st.sampled_from(["succeeded", "succeeded", "failed", "skipped", "retrying"])
#: The process of `make_worker`.
PID = 4711
CHILD = NewItem(0, "child", "default", "child-1", b'{"args":[],"kwargs":{}}', None, 5)


def drift(conn: Conn) -> list[dict[str, Any]]:
    return list(queries.run(conn, queries.verify())["drift"])


def event(job: int, item: int, attempt: int, state: str, worker: int, **more: Any) -> Event:
    retry = Retry(0.0) if state == "retrying" else None
    result = "1" if state == "succeeded" else None
    return Event(
        job, item, attempt, cast("OutcomeState", state), 0.01, time.monotonic(), worker, FAILURES.get(state), retry,
        result, **more,
    )  # fmt: skip


class Tracking(RuleBasedStateMachine):
    """RabbitMQ is a list of messages that may be delivered any number of times; workers die without a word."""

    def __init__(self, conn: Conn) -> None:
        super().__init__()
        self.conn = conn
        self.messages: list[Outgoing] = []
        self.unsettled: list[Outgoing] = []
        self.claims: list[tuple[PublishClaim, list[Outgoing]]] = []
        self.workers = [make_worker(conn) for _ in range(2)]
        self.jobs: list[int] = []
        self.children = 0
        self.finals: dict[tuple[int, int], str] = {}

    @initialize(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=2), sealed=st.booleans())
    def begin(self, sizes: list[int], sealed: bool) -> None:
        for size in sizes:
            self.jobs.append(make_job(self.conn, size, published=0, sealed=sealed))

    # Publishing ------------------------------------------------------------------------------------------------------

    @rule()
    def claim_job(self) -> None:
        claim = publishing.claim_job(self.conn)
        if claim is not None:
            batch, _ = publishing.bulk_items(self.conn, claim, claim.watermark, claim.total)
            self.claims.append((claim, batch))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), sure=st.integers(0, 4))
    def advance_watermark(self, data: st.DataObject, sure: int) -> None:
        """Sent; confirmed up to somewhere. A publisher whose claim was taken over comes too late."""
        claim, batch = self.claims.pop(data.draw(st.integers(0, len(self.claims) - 1)))
        self.messages += batch
        done = batch[:sure]
        whole = len(done) == len(batch)
        publishing.advance_watermark(
            self.conn, claim, watermark=claim.total if whole else batch[sure].item, published=len(done),
            suspect_below=0 if whole else claim.total, keep=False,
        )  # fmt: skip

    @precondition(lambda self: self.claims)
    @rule()
    def a_publisher_vanishes(self) -> None:
        claim, batch = self.claims.pop()
        self.messages += batch
        self.conn.execute(
            "UPDATE callboard.jobs SET publish_until = now() - interval '1 s' WHERE id = %s AND publish_token = %s",
            (claim.job, claim.token),
        )

    @rule()
    def claim_outbox(self) -> None:
        due = claim_outbox(self.conn, 10)
        self.messages += due
        self.unsettled += due

    @precondition(lambda self: self.unsettled)
    @rule(data=st.data(), twice=st.booleans())
    def confirm_outbox(self, data: st.DataObject, twice: bool) -> None:
        some = data.draw(st.lists(st.sampled_from(self.unsettled), unique_by=id, min_size=1))
        self.unsettled = [out for out in self.unsettled if out not in some]
        publishing.confirm_outbox(self.conn, some)
        if twice:
            publishing.confirm_outbox(self.conn, some)

    @rule()
    def outbox_claims_lapse(self) -> None:
        self.conn.execute("UPDATE callboard.outbox SET claimed_until = now() WHERE claimed_until IS NOT NULL")

    # Processing ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.messages)
    @rule(
        data=st.data(), states=st.lists(ENDS, min_size=1, max_size=4), children=st.integers(0, 2), repeat=st.booleans()
    )
    def outcomes(self, data: st.DataObject, states: list[str], children: int, repeat: bool) -> None:
        """A flush: outcomes of messages, delivered once more than is good, in any order, then perhaps all again."""
        chosen = {}
        for state in states:
            out = data.draw(st.sampled_from(self.messages))
            chosen[out.job, out.item] = (out, state)
        events = [
            event(
                out.job, out.item, out.attempt, state, self.workers[0], ran=True, children=self.born(out.job, children)
            )
            for out, state in chosen.values()
        ]
        for _ in range(1 + repeat):
            outcomes.record(self.conn, events, time.monotonic())

    def born(self, job: int, count: int) -> tuple[NewItem, ...]:
        """Children of an outcome; at most a few in all."""
        count = 0 if self.children > 3 else count
        self.children += count
        return tuple(replace(CHILD, job=job, message_id=f"child-{self.children}-{n}") for n in range(count))

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), which=st.integers(0, 1))
    def claim_item(self, data: st.DataObject, which: int) -> None:
        out = data.draw(st.sampled_from(self.messages))
        claim = claim_item(self.conn, out.job, out.item, out.attempt, self.workers[which])
        assert claim is not None
        if claim.state in FINAL or claim.attempt != out.attempt:
            assert not claim.taken

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), which=st.integers(0, 1))
    def report_running(self, data: st.DataObject, which: int) -> None:
        out = data.draw(st.sampled_from(self.messages))
        outcomes.report_running(self.conn, self.workers[which], [Running(out.job, out.item, out.attempt, 1.0, "step")])

    @rule(which=st.integers(0, 1), comes_back=st.booleans())
    def a_worker_dies(self, which: int, comes_back: bool) -> None:
        worker = self.workers[which]
        self.conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (worker,))
        for dead in dead_workers(self.conn):
            rescue(self.conn, dead)
        rescue(self.conn, worker)
        if comes_back:
            beat(self.conn, worker, [])
        else:
            self.workers[which] = make_worker(self.conn)

    @rule()
    def a_worker_that_lives_is_not_taken_for_dead(self) -> None:
        beat(self.conn, self.workers[0], [])
        assert rescue(self.conn, self.workers[0]) == 0

    # Jobs ------------------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        submission.seal_job(self.conn, data.draw(st.sampled_from(self.jobs)))

    @rule(data=st.data(), count=st.integers(1, 2))
    def send(self, data: st.DataObject, count: int) -> None:
        """Plain sends into a job that is open."""
        assume(self.children < 6)
        job = data.draw(st.sampled_from(self.jobs))
        new = [replace(CHILD, job=job, message_id=f"sent-{self.children + n}") for n in range(count)]
        self.children += sum(place is not None for place in sends.add_items(self.conn, new, publishing=False))

    @rule(data=st.data())
    def search(self, data: st.DataObject) -> None:
        """The sweep finds that nobody holds some items, and sends them again."""
        job = data.draw(st.sampled_from(self.jobs))
        lost = unheld(self.conn, job, 10)
        sweep.republish(self.conn, job, lost)

    # What always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def counters_are_what_the_rows_say(self) -> None:
        assert drift(self.conn) == []

    @invariant()
    def final_stays_final(self) -> None:
        for job, item, state in self.conn.execute("SELECT job_id, item, state::text FROM callboard.items").fetchall():
            before = self.finals.setdefault((job, item), state)
            assert state == before or MOVES[before], (job, item, before, state)
            self.finals[job, item] = state

    @invariant()
    def a_sealed_job_with_nothing_left_is_completed(self) -> None:
        assert close_jobs(self.conn) == []
        for job in self.jobs:
            found = self._job(job)
            done = found["succeeded"] + found["failed"] + found["skipped"] == found["total"]
            assert (found["state"] == "completed") == (found["sealed"] and done), found

    @invariant()
    def no_item_is_stranded(self) -> None:
        """Each open item is below nobody's watermark, in the outbox, in hand, or found by the search."""
        rows = self.conn.execute(
            """
            SELECT i.job_id, i.item, i.state::text FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id
            WHERE i.finished_at IS NULL
              AND NOT (i.sent_at IS NULL AND i.item >= j.watermark)
              AND NOT EXISTS (SELECT FROM callboard.outbox AS o WHERE (o.job_id, o.item) = (i.job_id, i.item))
              AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE (r.job_id, r.item) = (i.job_id, i.item))
            """
        ).fetchall()
        found = {(job, item) for job in self.jobs for item, _ in unheld(self.conn, job, 100)}
        assert {(job, item) for job, item, _ in rows} <= found, rows

    def teardown(self) -> None:
        """Left alone with a worker that works, every job comes to its end."""
        for job in self.jobs:
            submission.seal_job(self.conn, job)
        for worker in self.workers:
            self.conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (worker,))
        self.conn.execute("UPDATE callboard.jobs SET publish_until = NULL")
        worker = make_worker(self.conn)
        for _ in range(20):
            self._a_round(worker)
            if all(self._done(self._job(job)) for job in self.jobs):
                break
        assert drift(self.conn) == []
        for job in self.jobs:
            assert self._done(self._job(job)), self._job(job)
        self.conn.execute("TRUNCATE callboard.jobs, callboard.items, callboard.outbox, callboard.running")
        self.conn.execute("TRUNCATE callboard.attempts, callboard.errors, callboard.results, callboard.workers")

    def _job(self, job: int) -> dict[str, Any]:
        found = queries.run(self.conn, queries.job(job))
        assert found is not None
        return found

    def _done(self, job: dict[str, Any]) -> bool:
        return bool(job["state"] == "completed")

    def _a_round(self, worker: int) -> None:
        for dead in dead_workers(self.conn):
            rescue(self.conn, dead)
        self.outbox_claims_lapse()
        found: list[Outgoing] = []
        while (claim := publishing.claim_job(self.conn)) is not None and claim.lane_by is None:
            batch, _ = publishing.bulk_items(self.conn, claim, claim.watermark, claim.total)
            publishing.advance_watermark(self.conn, claim, watermark=claim.total, published=len(batch), keep=False)
            found += batch
        due = claim_outbox(self.conn, 100)
        publishing.confirm_outbox(self.conn, due)
        self._run(worker, [*found, *due])
        for job in self.jobs:
            lost = unheld(self.conn, job, 100)
            sweep.republish(self.conn, job, lost)

    def _run(self, worker: int, messages: Sequence[Outgoing]) -> None:
        for out in messages:
            claim = claim_item(self.conn, out.job, out.item, out.attempt, worker)
            if claim is not None and claim.taken:
                done = event(out.job, out.item, out.attempt, "succeeded", worker, ran=True)
                outcomes.record(self.conn, [done], time.monotonic())


@pytest.mark.filterwarnings("default")
def test_whatever_the_order_the_counts_are_true_and_nothing_is_stranded(conn: Conn) -> None:
    conn.execute("SET synchronous_commit = off")
    run_state_machine_as_test(
        lambda: Tracking(conn),  # type: ignore[arg-type]
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


# At once -------------------------------------------------------------------------------------------------------------


def test_a_message_that_is_confirmed_twice_at_once_counts_once(conn: Conn) -> None:
    """Claimed anew after its lease had lapsed, and settled with both claims; or with that of an older attempt."""
    job = make_job(conn, 0, sealed=False)
    sends.add_items(conn, [replace(CHILD, job=job)], publishing=False)
    (out,) = claim_outbox(conn, 1)
    publishing.confirm_outbox(conn, [out, replace(out), replace(out, attempt=0)])
    assert drift(conn) == []
    assert conn.execute("SELECT published FROM callboard.jobs").fetchone() == (1,)
    assert conn.execute("SELECT FROM callboard.outbox").fetchall() == []


def test_the_ends_of_items_change_no_index(conn: Conn) -> None:
    job = make_job(conn, 1000)
    with transaction(conn):  # so no old version makes room
        record(conn, job, {"succeeded": range(1000)}, worker=make_worker(conn))
        updated = conn.execute(
            "SELECT pg_stat_get_xact_tuples_hot_updated(t), pg_stat_get_xact_tuples_updated(t)"
            " FROM (SELECT 'callboard.items'::regclass) AS items (t)"
        ).fetchone()
    assert updated == (1000, 1000)


def test_a_plain_send_takes_at_most_250_bytes_over_its_life_and_its_end_changes_no_index(conn: Conn) -> None:
    job, count = sends.standing_job(conn, "work", "default"), 6000
    new = [NewItem(job, "work", "default", str(uuid4()), encode_args((n,), {}), None, 5) for n in range(count)]
    assert all(sends.add_items(conn, new, publishing=True))
    with transaction(conn):  # so no old version makes room
        record(conn, job, {"succeeded": range(count)}, worker=make_worker(conn))
        found = conn.execute(
            "SELECT pg_stat_get_xact_tuples_hot_updated(t),"
            " pg_relation_size(t) + pg_relation_size('callboard.items_pkey')"
            " FROM (SELECT 'callboard.items'::regclass) AS items (t)"
        ).fetchone()
    assert found
    assert found[0] == count
    assert found[1] / count <= 250


@pytest.mark.parametrize("many", [False, True])
def test_a_send_is_stored_without_the_names_that_its_job_has_and_published_with_all(many: bool, conn: Conn) -> None:
    """Its message has the id that it was sent with, however that is written."""
    identity = str(uuid4())
    job = sends.standing_job(conn, "work", "default")
    given = [
        replace(CHILD, job=job, actor=actor, queue=queue, message_id=message_id)
        for actor, queue, message_id in [
            ("work", "default", identity), ("work", "other", identity.upper()),
            ("child", "default", UUID(identity).hex), ("child", "other", f"{{{identity}}}"),
            ("work", "default", ""), ("work", "default", identity + "\n"),
        ]
    ]  # fmt: skip
    [(_, lease)] = filter(None, sends.add_items(conn, [replace(CHILD, job=job)], publishing=True))
    for new in [given] if many else [[one] for one in given]:
        assert all(
            place and place[1] == lease for place in sends.add_items(conn, new, publishing=True, leases=[lease or 0])
        )
    rows = conn.execute("SELECT actor, queue FROM callboard.items ORDER BY item").fetchall()
    assert rows == [
        ("child", None), (None, None), (None, "other"), ("child", None), ("child", "other"), (None, None), (None, None)
    ]  # fmt: skip
    conn.execute("UPDATE callboard.send_leases SET ends_at = now()")
    assert sends.queue_lapsed_sends(conn, job, [lease or 0])
    queues = conn.execute("SELECT DISTINCT queue FROM callboard.outbox ORDER BY queue").fetchall()
    assert queues == [("",), ("other",)]
    first, *out = claim_outbox(conn, 10)
    found = {(one.item, one.actor, one.queue, one.message_id) for one in out}
    assert found == {(n, one.actor, one.queue, one.message_id) for n, one in enumerate(given, 1)}
    assert first.message_id == CHILD.message_id


def test_a_flush_passes_none_of_the_versions_that_an_old_snapshot_keeps_of_its_job(
    conn: Conn, database_url: str
) -> None:
    """Nor if its plans were made and kept when the table had a page, which PostgreSQL reads whole; nor if the newest
    lies on a page before those of the others.
    """
    update = (
        "DO $$ BEGIN FOR n IN 1 .. %d LOOP UPDATE callboard.jobs SET step = n WHERE id = %d; COMMIT; END LOOP; END $$"
    )
    with (
        connect(database_url) as leaving,
        connect(database_url) as old,
        connect(database_url) as blocking,
        ThreadPoolExecutor(1) as pool,
    ):
        # Rows that are gone at once when this ends, whatever snapshots are held. Until then no version of any other is:
        # transactions of tests beside this one, which a snapshot counts too, would decide which page has room.
        leaving.execute("BEGIN")
        leaving.execute("INSERT INTO callboard.jobs (name) SELECT 'left' FROM generate_series(1, 100)")
        for _ in range(5):
            job = make_job(conn, 20)
        conn.execute("ANALYZE callboard.jobs")
        for item in range(10, 20):
            record(conn, job, {"succeeded": [item]})  # it runs, which the indexes say: the ends of the next change none
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT FROM callboard.jobs")
        conn.execute((update % (650, job)).encode())
        last = _page(conn, job)
        leaving.rollback()
        conn.execute("VACUUM callboard.jobs")  # pages of those that left, for who has no page yet
        with connect(database_url) as writer:
            writer.execute((update % (50, job)).encode())
        assert _page(conn, job) < last - 20
        read, waited = [], []
        # Some may be the first on their page, of which the indexes learn: that reads all others once.
        for item in range(0, 9, 3):
            read.append(_blocks_of_jobs(conn, event(job, item, 1, "succeeded", 1)))
            with blocking.transaction():
                record(blocking, job, {"succeeded": [item + 1]})
                blocked = pool.submit(_blocks_of_jobs, conn, event(job, item + 2, 1, "succeeded", 1))
                assert wait_until(lambda: waits(database_url), 300)
            waited.append(blocked.result(300))
        old.rollback()
    assert (min(read) < 20, min(waited) < 20) == (True, True), (read, waited)
    assert drift(conn) == []


def _page(conn: Conn, job: int) -> int:
    """The page of the table `jobs` on which the newest version of a job's row lies."""
    return int(conn.execute("SELECT (ctid::text::point)[0] FROM callboard.jobs WHERE id = %s", [job]).fetchall()[0][0])


def _blocks_of_jobs(conn: Conn, ended: Event) -> int:
    """How many blocks of the table `jobs` are read to record an outcome."""
    fetched = "SELECT pg_stat_get_xact_blocks_fetched('callboard.jobs'::regclass)"
    with transaction(conn):
        before, _ = conn.execute(fetched).fetchall()[0][0], outcomes.record(conn, [ended], time.monotonic())
        return int(conn.execute(fetched).fetchall()[0][0] - before)


def test_a_flush_that_waits_for_its_job_adds_to_what_it_then_finds(conn: Conn, database_url: str) -> None:
    """Its snapshot has neither the version that it locks nor, at first, the failure that counts for the limit."""
    job = make_job(conn, 3)
    conn.execute("UPDATE callboard.jobs SET fail_count = 1")
    with connect(database_url) as blocking, ThreadPoolExecutor(1) as pool:
        with blocking.transaction():
            first = [event(job, 0, 1, "succeeded", 2), event(job, 1, 1, "failed", 2)]
            outcomes.record(blocking, first, time.monotonic())
            blocked = pool.submit(outcomes.record, conn, [event(job, 2, 1, "failed", 1)], time.monotonic())
            assert wait_until(lambda: waits(database_url), 300)
        [control] = blocked.result(300)
    assert (control.job, control.state) == (job, "failed")
    assert conn.execute("SELECT succeeded, failed, epoch FROM callboard.jobs").fetchall() == [(1, 2, 1)]
    assert drift(conn) == []


def test_two_flushes_of_the_same_items_at_once_count_them_once(conn: Conn, database_url: str) -> None:
    """One is blocked by the other's locks, and then finds each item as the other left it."""
    job = make_job(conn, 50)
    ends: list[OutcomeState] = ["succeeded", "retrying", "failed", "skipped"]
    first = [event(job, n, 1, ends[n % 4], 1) for n in range(50)]
    second = [event(job, n, 1, ends[(n + 1) % 4], 2) for n in range(50)]
    with connect(database_url) as blocking, ThreadPoolExecutor(1) as pool:
        with blocking.transaction():
            outcomes.record(blocking, first, time.monotonic())
            blocked = pool.submit(outcomes.record, conn, second, time.monotonic())
            assert wait_until(lambda: waits(database_url), 300)
        assert blocked.result(300) == []
    assert drift(conn) == []
    found = queries.run(conn, queries.job(job))
    assert found is not None
    assert (found["succeeded"], found["retrying"], found["failed"], found["skipped"]) == (13, 13, 12, 12)


def test_a_retry_that_is_published_while_the_same_item_ends_again_leaves_no_trace(
    conn: Conn, database_url: str
) -> None:
    """confirm_outbox waits for the flush, and the flush's state is what it then moves, or doesn't."""
    job = make_job(conn, 1)
    record(conn, job, {"retrying": [0]}, delay=0.0)
    due = claim_outbox(conn, 10)
    assert [out.attempt for out in due] == [2]
    with connect(database_url) as blocking, ThreadPoolExecutor(1) as pool:
        with blocking.transaction():
            outcomes.record(blocking, [event(job, 0, 2, "succeeded", 1)], time.monotonic())
            blocked = pool.submit(publishing.confirm_outbox, conn, due)
            assert wait_until(lambda: waits(database_url), 300)
        blocked.result(300)
    assert drift(conn) == []
    assert (queries.run(conn, queries.job(job)) or {})["state"] == "completed"


def crossing(jobs: Sequence[int], n: int, attempt: int) -> list[Event]:
    """One event in each of the jobs, listed in an order of its own."""
    turned = [*jobs[n % len(jobs) :], *jobs[: n % len(jobs)]]
    return [event(job, n, attempt, "succeeded", 1) for job in (turned if n % 2 else turned[::-1])]


def test_flushes_of_many_jobs_that_cross_each_other_do_not_drift(conn: Conn, database_url: str) -> None:
    """Twelve jobs, four journals, each flush over all of them in another order, with other writers in between."""
    items = 60
    jobs = [make_job(conn, items) for _ in range(12)]
    attempts = RecordedAttempts(expects_more=lambda ended: ended < 1000)
    with process_on(database_url) as process:
        journals = [Journal(process, attempts, _ignore) for _ in range(4)]
        threads = [threading.Thread(target=_flush_all, args=(journals[n], jobs, range(n, items, 4))) for n in range(4)]
        threads.append(threading.Thread(target=_touch, args=(database_url, jobs)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
        for journal in journals:
            assert journal.close(300)
    assert len(attempts.acknowledged) == 12 * items
    assert drift(conn) == []
    for job in jobs:
        assert (queries.run(conn, queries.job(job)) or {})["state"] == "completed"
    row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    assert row[0] == 0


def _ignore(*_: object) -> None:
    """What a journal tells nobody here."""


def entry(ended: Event) -> Entry:
    """What a worker thread notes of an attempt that ended."""
    return Entry(make_attempt(ended.job, ended.item, ended.attempt), ended, dead_letter=False)


def _flush_all(journal: Journal, jobs: Sequence[int], items: range) -> None:
    for n in items:
        for one in crossing(jobs, n, 1):
            journal.add(entry(one))
        written = threading.Event()
        journal.when_written(written.set)
        assert written.wait(300)


def _touch(url: str, jobs: Sequence[int]) -> None:
    with connect(url) as conn:
        for n in range(40):
            outcomes.touch_jobs(conn, dict.fromkeys(jobs[:: 1 if n % 2 else -1], (f"step {n}", 0.0)))


def test_a_deadlock_is_only_the_same_flush_again(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal whose flush PostgreSQL chose as the victim of a deadlock repeats it, and counts once."""
    deadlocks: list[BaseException] = []
    plain = outcomes.record

    def noted(*given: Any) -> Any:
        try:
            return plain(*given)
        except psycopg.errors.DeadlockDetected as error:
            deadlocks.append(error)
            raise

    def meet() -> bool:
        """PostgreSQL looks for a deadlock once, after a second: the rival may come too late for that."""
        one, other = sorted(make_job(conn, 1) for _ in range(2))
        attempts = RecordedAttempts(expects_more=lambda ended: ended < 1000)
        with process_on(database_url) as process, connect(database_url) as rival:
            journal = Journal(process, attempts, _ignore)
            rival.execute("SET deadlock_timeout = '1 h'")
            with rival.transaction():
                rival.execute("SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE", (other,))
                for job in (one, other):
                    journal.add(entry(event(job, 0, 1, "succeeded", 1)))
                assert wait_until(lambda: waits(database_url), 300)
                rival.execute("SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE", (one,))
            assert journal.close(300)
        assert len(attempts.acknowledged) == 2
        assert drift(conn) == []
        return bool(deadlocks)

    monkeypatch.setattr(outcomes, "record", noted)
    assert wait_until(meet, 300)


def at_once(url: str, count: int, what: Any) -> list[Any]:
    """Do it on so many connections at the same moment."""
    gate = threading.Barrier(count)

    def run(n: int) -> Any:
        with connect(url) as conn:
            gate.wait()
            return what(conn, n)

    with ThreadPoolExecutor(count) as pool:
        return [future.result(300) for future in [pool.submit(run, n) for n in range(count)]]


def test_one_standing_job_a_day_however_many_ask_for_it(database_url: str, conn: Conn) -> None:
    for n in range(10):
        actor = f"actor {n}"
        assert len(set(at_once(database_url, 8, lambda c, _: sends.standing_job(c, actor, "default")))) == 1  # noqa: B023
    assert (conn.execute("SELECT count(*) FROM callboard.jobs").fetchone() or [0])[0] == 10


def test_one_job_a_key_however_many_make_it(database_url: str) -> None:
    def make(conn: Conn, key: str) -> Any:
        return submission.create_job(
            conn, name="a job", key=key, tenant="", actor="work", queue="default", metadata={}, created_by=None
        )

    for n in range(10):
        made = at_once(database_url, 8, lambda conn, _: make(conn, f"key {n}"))  # noqa: B023
        assert len({one.job for one in made}) == 1


def test_a_chunk_that_two_store_at_once_is_stored_once(database_url: str, conn: Conn) -> None:
    job = make_job(conn, 0, sealed=False)
    chunk = [(b'{"args":[%d],"kwargs":{}}' % n, f"key {n // 2}") for n in range(100)]
    for start, keyed in ((0, False), (100, True)):
        found = at_once(
            database_url,
            6,
            lambda c, _: submission.store_chunk(c, job, start, chunk, keyed=keyed),  # noqa: B023
        )
        assert sorted(how for how, _ in found) == ["elsewhere"] * 5 + ["stored"]
    submission.seal_job(conn, job)
    assert submission.store_chunk(conn, job, 200, chunk, keyed=False) == ("sealed", 200)
    assert (queries.run(conn, queries.job(job)) or {})["total"] == 150
    assert drift(conn) == []


def test_only_one_publisher_has_a_job_and_a_late_one_moves_nothing(database_url: str, conn: Conn) -> None:
    job = make_job(conn, 10, published=0)
    claims = [claim for claim in at_once(database_url, 6, lambda c, _: publishing.claim_job(c)) if claim is not None]
    assert len(claims) == 1
    conn.execute("UPDATE callboard.jobs SET publish_until = now() - interval '1 s'")
    successor = publishing.claim_given_job(conn, job)
    assert successor is not None
    assert successor.suspect_below == timings.PUBLISH_WINDOW_ITEMS
    assert not publishing.advance_watermark(conn, claims[0], watermark=10, published=10, keep=False)
    assert all(out.suspect for out in publishing.bulk_items(conn, successor, 0, 10)[0])
    assert publishing.advance_watermark(conn, successor, watermark=10, published=10, keep=False)
    assert (queries.run(conn, queries.job(job)) or {})["queued"] == 10
    assert drift(conn) == []


def test_a_suspect_message_gets_its_item_only_once(database_url: str, conn: Conn) -> None:
    job = make_job(conn, 1)
    workers = [make_worker(conn) for _ in range(6)]
    claims = at_once(database_url, 6, lambda c, n: claim_item(c, job, 0, 1, workers[n]))
    assert sum(claim.taken for claim in claims) == 1


def test_a_death_is_charged_to_the_item_that_crashed_before(conn: Conn) -> None:
    """Its neighbours go on, uncharged; at the third crash it is failed."""
    job = make_job(conn, 3)
    for death in range(1, 4):
        worker = make_worker(conn)
        items = conn.execute(
            "SELECT item, attempt FROM callboard.items WHERE finished_at IS NULL ORDER BY 1"
        ).fetchall()
        for item, attempt in items[:1] if death == 1 else reversed(items):  # what runs alone begins last
            claim = claim_item(conn, job, item, attempt, worker, alone=True)
            assert claim is not None
            assert claim.taken
        conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (worker,))
        assert dead_workers(conn) == [worker]
        rescue(conn, worker)
        assert rescue(conn, worker) == 0
    rows = conn.execute("SELECT item, state::text, coalesce(crashes, 0) FROM callboard.items ORDER BY 1").fetchall()
    assert rows == [(0, "failed", 3), (1, "retrying", 0), (2, "retrying", 0)]
    error = (queries.run(conn, queries.item(job, 0)) or {})["error"]
    assert error["type"] == "WorkerDied"
    assert "; 3 crashes are charged to it" in error["message"]
    assert drift(conn) == []


def die(conn: Conn, job: int, ran: dict[int, float]) -> dict[int, tuple[str, int]]:
    """A worker claims these items, and dies when they have run for so many seconds; return {item: (state, crashes)}."""
    worker = make_worker(conn)
    rows = conn.execute("SELECT item, attempt FROM callboard.items WHERE job_id = %s", (job,)).fetchall()
    attempts = {row[0]: row[1] for row in rows}
    for item, seconds in ran.items():
        claim = claim_item(conn, job, item, attempts[item], worker, alone=True)
        assert claim is not None
        assert claim.taken
        conn.execute(
            "UPDATE callboard.running SET started_at = now() - interval '1 h' - make_interval(secs => %s)"
            " WHERE job_id = %s AND item = %s",
            (seconds, job, item),
        )
    conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (worker,))
    rescue(conn, worker)
    rows = conn.execute(
        "SELECT item, state::text, coalesce(crashes, 0) FROM callboard.items WHERE job_id = %s", (job,)
    ).fetchall()
    assert drift(conn) == []
    return {item: (state, crashes) for item, state, crashes in rows}


class DeadHere(RunFile):
    """The files of a host on which one process died, when it had begun item 0 of a job."""

    def __init__(self, path: Path, worker: int, job: int, *, pid: int = PID) -> None:
        super().__init__()
        self.process = DeadProcess(path, worker, pid, [Running(job, 0, 1, 0.1, None)])
        path.touch()

    def dead(self) -> Iterator[DeadProcess]:
        """See RunFile; what was put off comes at once."""
        if self.process.path.exists():
            yield self.process


def test_an_item_that_had_just_begun_when_its_process_died_is_requeued_at_once(conn: Conn, tmp_path: Path) -> None:
    job, worker = make_job(conn, 2), make_worker(conn)
    here = DeadHere(tmp_path / "file", worker, job)
    for _ in range(2):
        rescue_of_host(conn, here)
        assert list(here.dead()) == []
    rows = conn.execute(
        "SELECT item, state::text, attempt, coalesce(crashes, 0) FROM callboard.items ORDER BY 1"
    ).fetchall()
    assert rows == [(0, "retrying", 2, 1), (1, "waiting", 1, 0)]
    assert [a["kind"] for a in queries.run(conn, queries.attempts(job, 0))] == ["crashed"]
    assert conn.execute("SELECT id FROM callboard.workers WHERE died_at IS NOT NULL").fetchall() == [(worker,)]
    assert drift(conn) == []


@pytest.mark.parametrize("end", ["succeeded", "failed", "skipped", "retrying"])
def test_the_history_keeps_a_death_of_an_item_that_runs_elsewhere_already(
    end: OutcomeState, conn: Conn, tmp_path: Path
) -> None:
    """Its message came to another host before the file was read. The death is charged to nobody."""
    job, worker, other = make_job(conn, 2), make_worker(conn), make_worker(conn)
    here = DeadHere(tmp_path / "file", worker, job)
    assert claim_item(conn, job, 0, 1, other)
    rescue_of_host(conn, here)
    assert len(list(here.dead())) == 1  # read again when the item has ended
    record(conn, job, {end: [0]}, worker=other)
    conn.execute("DELETE FROM callboard.running")
    for _ in range(2):
        rescue_of_host(conn, here)
        assert list(here.dead()) == []
    found = queries.run(conn, queries.item(job, 0)) or {}
    assert (found["state"], found["crashes"], found["error"] is None) == (end, 0, end == "succeeded")
    kinds = {"succeeded": "crashed", "skipped": "skipped"}
    history = [(one["attempt"], one["kind"]) for one in queries.run(conn, queries.attempts(job, 0))]
    assert history == [(1, kinds.get(end, "failed"))]
    if end == "succeeded":
        (group,) = queries.run(conn, queries.errors(job))
        assert (group["type"], group["count"], group["failed"]) == ("WorkerDied", 1, 0)
    assert drift(conn) == []


@pytest.mark.parametrize("how", ["stopped", "of a copy of the database"])
def test_a_worker_that_did_not_die_is_passed_by(how: str, conn: Conn, tmp_path: Path) -> None:
    job, worker = make_job(conn, 1), make_worker(conn)
    here = DeadHere(tmp_path / "file", worker, job, pid=PID if how == "stopped" else PID + 1)
    if how == "stopped":
        conn.execute("UPDATE callboard.workers SET stopped_at = now()")
    rescue_of_host(conn, here)
    assert conn.execute("SELECT state::text, attempt FROM callboard.items").fetchall() == [("waiting", 1)]
    if how == "stopped":
        assert conn.execute("SELECT FROM callboard.workers WHERE died_at IS NULL").rowcount == 1
    else:
        assert dead_workers(conn) == []


def test_what_a_dead_process_ran_is_requeued_later_when_it_is_locked(
    conn: Conn, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.1)
    job, worker = make_job(conn, 1), make_worker(conn)
    here = DeadHere(tmp_path / "file", worker, job)
    with connect(database_url) as other, other.transaction():
        other.execute("SELECT FROM callboard.workers FOR UPDATE")
        rescue_of_host(conn, here)
    assert f"the items of worker {worker}, which is dead, can't be requeued yet" in caplog.text
    rescue_of_host(conn, here)
    assert conn.execute("SELECT state::text, crashes FROM callboard.items").fetchall() == [("retrying", 1)]


def test_a_long_item_does_not_fail_for_the_death_of_one_that_ran_alone_beside_it(conn: Conn) -> None:
    job = make_job(conn, 4)
    assert die(conn, job, {0: 30.0, 1: 0.5, 2: 0.5})[0] == ("retrying", 1)
    die(conn, job, {0: 5.0, 1: 0.5, 2: 0.5})
    found = die(conn, job, {0: 30.0, 1: 0.5, 3: 12.0})
    assert found == {0: ("retrying", 2), 1: ("failed", 3), 2: ("retrying", 2), 3: ("retrying", 0)}
    found = die(conn, job, {0: 9.5, 2: 0.0})  # the last heartbeat was a moment before the long one had run for 10 s
    assert (found[0], found[2]) == (("retrying", 2), ("failed", 3))
    assert die(conn, job, {0: 30.0})[0] == ("failed", 3)


def test_a_long_item_that_dies_beside_new_ones_each_time_fails_at_the_sixth_death(conn: Conn) -> None:
    """Each of the new ones may be to blame: they are charged too, so one that kills soon runs alone."""
    job = make_job(conn, 7)
    for death in range(1, 6):
        found = die(conn, job, {0: 30.0, death: 0.5})
        assert found[0] == ("retrying", death)
        assert found[death] == ("retrying", 1)
    assert die(conn, job, {0: 30.0, 6: 0.5})[0] == ("failed", 6)
    message = (queries.run(conn, queries.item(job, 0)) or {})["error"]["message"]
    assert message.endswith("; 6 crashes are charged to it, so it is not tried again")


def test_an_item_that_waits_to_run_alone_is_charged_with_no_death(conn: Conn) -> None:
    job = make_job(conn, 2)
    for _ in range(2):
        die(conn, job, {0: 0.5})
    worker = make_worker(conn)
    for alone in (False, True):
        claim = claim_item(conn, job, 0, 3, worker, alone=alone)
        assert claim is not None
        assert (claim.taken, claim.isolate, claim.holder) == (alone, not alone, worker if alone else None)
        assert conn.execute("SELECT FROM callboard.running").rowcount == alone
    copy = claim_item(conn, job, 0, 2, worker)
    assert copy is not None
    assert not copy.isolate


def test_a_copy_of_an_item_that_runs_alone_elsewhere_waits_for_no_turn(conn: Conn) -> None:
    """The copy is dropped while that worker lives; if it has ended, the copy has its items rescued."""
    job = make_job(conn, 1)
    for _ in range(2):
        die(conn, job, {0: 0.5})
    holder, other = make_worker(conn), make_worker(conn)
    attempt = make_attempt(item=0, job=job, number=3)
    assert claim_item(conn, job, 0, 3, holder, alone=True)
    assert claim(conn, attempt, other) is None
    assert conn.execute("SELECT worker FROM callboard.running").fetchall() == [(holder,)]
    again = claim_item(conn, job, 0, 3, holder)
    assert again is not None
    assert (again.taken, again.isolate, again.holder) == (False, True, holder)
    conn.execute("UPDATE callboard.workers SET stopped_at = now() WHERE id = %s", (holder,))
    assert claim(conn, attempt, other) is None
    assert conn.execute("SELECT FROM callboard.running").rowcount == 0
    assert conn.execute("SELECT state::text, crashes FROM callboard.items").fetchall() == [("failed", 3)]


def test_an_item_that_ends_by_itself_has_its_crashes_dropped(conn: Conn) -> None:
    """Of three that were in hand at a death; what is tried again is under suspicion still.
    The history keeps the death.
    """
    job = make_job(conn, 4)
    worker = make_worker(conn)
    for item in range(4):
        assert claim_item(conn, job, item, 1, worker)
    conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (worker,))
    assert rescue(conn, worker) == 4
    assert (queries.run(conn, queries.job(job)) or {})["crashes"] == 4
    ends: dict[OutcomeState, Iterable[int]] = {"succeeded": [0], "failed": [1], "skipped": [2], "retrying": [3]}
    record(conn, job, ends, attempt=2)
    record(conn, job, ends, attempt=2)
    rows = conn.execute("SELECT item, coalesce(crashes, 0) FROM callboard.items ORDER BY 1").fetchall()
    assert rows == [(0, 0), (1, 0), (2, 0), (3, 1)]
    kinds = [[a["kind"] for a in queries.run(conn, queries.attempts(job, item))] for item in range(4)]
    assert kinds == [["crashed"], ["crashed", "failed"], ["crashed", "skipped"], ["crashed", "failed"]]
    assert (queries.run(conn, queries.job(job)) or {})["crashes"] == 1
    assert drift(conn) == []


def test_a_job_started_when_the_first_of_its_items_did(conn: Conn) -> None:
    """The outcomes arrive in any order; a slow item is seen before it ends."""
    job, slow = make_job(conn, 4), make_job(conn, 1)
    starts: list[tuple[Any, Any]] = []
    for item, seconds in enumerate((5.0, 60.0, 1.0)):
        outcomes.record(conn, [replace(event(job, item, 1, "succeeded", 1), elapsed=seconds)], time.monotonic())
        starts.append(_starts(conn, job))
    assert all(of_job == of_items for of_job, of_items in starts)
    assert starts[1][0] < starts[0][0] - timedelta(seconds=50)
    assert starts[2] == starts[1]
    outcomes.touch_jobs(conn, {slow: (None, 60.0)})
    seen, _ = _starts(conn, slow)
    outcomes.record(conn, [replace(event(slow, 0, 1, "succeeded", 1), elapsed=1.0)], time.monotonic())
    assert _starts(conn, slow)[0] == seen < _starts(conn, slow)[1] - timedelta(seconds=50)
    outcomes.touch_jobs(conn, {job: ("a step", 1.0)})
    assert _starts(conn, job) == starts[1]


def _starts(conn: Conn, job: int) -> tuple[Any, Any]:
    """When a job started, and the first of its items."""
    found = conn.execute(
        "SELECT j.started_at, (SELECT min(i.started_at) FROM callboard.items AS i WHERE i.job_id = j.id)"
        " FROM callboard.jobs AS j WHERE j.id = %s",
        (job,),
    ).fetchone()
    assert found is not None
    return found


def test_a_stale_end_leaves_the_next_attempt_of_the_same_worker_in_hand(conn: Conn) -> None:
    """Its worker was frozen, was taken for dead, goes on, and gets the item's next attempt."""
    job, worker, other = make_job(conn, 1), make_worker(conn), make_worker(conn)
    outcomes.report_running(conn, worker, [Running(job, 0, 1, 1.0, None)])
    conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (worker,))
    assert rescue(conn, worker) == 1
    beat(conn, worker, [])
    assert claim_item(conn, job, 0, 2, worker)
    outcomes.record(conn, [event(job, 0, 1, "succeeded", worker, ran=True)], time.monotonic())
    release_item(conn, job, 0, 1, worker)
    held = conn.execute("SELECT attempt, worker FROM callboard.running").fetchall()
    assert held == [(2, worker)]
    copy = claim_item(conn, job, 0, 2, other)
    assert copy is not None
    assert (copy.taken, copy.holder) == (False, worker)
    outcomes.record(conn, [event(job, 0, 2, "succeeded", worker, ran=True)], time.monotonic())
    assert conn.execute("SELECT FROM callboard.running").rowcount == 0
    assert drift(conn) == []


def test_a_result_that_is_not_kept_is_counted_once_and_says_why(conn: Conn) -> None:
    job, now = make_job(conn, 2), time.monotonic()
    for _ in range(2):
        outcomes.record(conn, [Event(job, 0, 1, "succeeded", 0.1, now, 1, unkept="too large")], now)
    outcomes.record(conn, [Event(job, 1, 1, "succeeded", 0.1, now, 1, result="1")], now)
    first, second = (queries.run(conn, queries.item(job, 0)) or {}, queries.run(conn, queries.item(job, 1)) or {})
    assert (first["state"], first["result"], first["result_unkept"]) == ("succeeded", None, "too large")
    assert (second["result"], second["result_unkept"]) == (1, None)
    assert (queries.run(conn, queries.job(job)) or {})["unkept"] == 1
    assert drift(conn) == []
    conn.execute("UPDATE callboard.jobs SET unkept = 7 WHERE id = %s", (job,))
    repair_counters(conn, [job])
    assert (queries.run(conn, queries.job(job)) or {})["unkept"] == 1


def test_an_interrupted_flush_changes_nothing(conn: Conn) -> None:
    job = make_job(conn, 2)
    with conn.transaction(force_rollback=True):
        outcomes.record(conn, [event(job, 0, 1, "succeeded", 1)], time.monotonic())
    assert drift(conn) == []
    assert (queries.run(conn, queries.job(job)) or {})["succeeded"] == 0
