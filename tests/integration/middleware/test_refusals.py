"""Errors of a flush: bad data fails its own item, drifted counters are repaired, any other write is tried again."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from callboard.middleware.callbacks.stage_maker import StageMaker
from callboard.middleware.journal.counter_repair import repair_counters
from callboard.middleware.journal.journal import Entry, Journal
from callboard.middleware.journal.rescue import rescue
from callboard.middleware.process import outage
from callboard.middleware.process.process import Process
from callboard.middleware.publish import relay as module
from callboard.middleware.publish.transport import Answer
from callboard.middleware.sweep.retention import Retention
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql import timings
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import Event, NewItem, Outgoing, Retry, Running
from callboard.sql.writes import actions, claims, jobs, outcomes, sends, stages, submission, workers
from callboard.sql.writes.requests import Requester
from tests.support.databases import waits
from tests.support.deliveries import make_attempt
from tests.support.jobs import BAD, claim_outbox, make_job, make_staged, make_worker, record, run, status
from tests.support.process_parts import RecordedAttempts, process_on
from tests.support.transports import StubTransport, relay_to
from tests.support.workers import wait_until

ANNA = Requester("python", "anna")

CHILD = NewItem(0, "work", "default", "m", b"{}", None, 0)


class FlushedJournal:
    """A journal, and the entries that it acknowledged."""

    def __init__(self, process: Process) -> None:
        self.attempts = RecordedAttempts()
        self.journal = Journal(process, self.attempts, lambda *_: None)

    @property
    def acknowledged(self) -> list[Entry]:
        return self.attempts.acknowledged

    def flush(self, events: Sequence[Event]) -> None:
        """Write these events in one flush."""
        with self.journal._wake:
            for one in events:
                ended = make_attempt(one.job, one.item, one.attempt, ended=True)
                self.journal.add(Entry(ended, one, dead_letter=False))

    def done(self, count: int, timeout: float = 300) -> bool:
        """Wait until so many are acknowledged; return whether they are."""
        return wait_until(lambda: len(self.acknowledged) >= count, timeout)


@contextmanager
def kept(url: str) -> Iterator[FlushedJournal]:
    """A journal on a database."""
    with process_on(url) as process:
        made = FlushedJournal(process)
        made.journal.watch()
        yield made
        assert made.journal.close(300)


@pytest.fixture(autouse=True)
def each_error_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once in some seconds."""
    monkeypatch.setattr(outage, "LOG_EVERY_SECONDS", 0.0)


@pytest.fixture
def journal(database_url: str) -> Iterator[FlushedJournal]:
    with kept(database_url) as made:
        yield made


def good(job: int, item: int) -> Event:
    """An item that succeeded just now."""
    return Event(job, item, 1, "succeeded", 0.1, time.monotonic(), 1)


def drift(conn: Conn) -> Any:
    return queries.run(conn, queries.verify())["drift"]


def test_bad_data_fails_its_own_item_and_no_other(journal: FlushedJournal, conn: Conn) -> None:
    job = make_job(conn, 200)
    bad: dict[int, dict[str, Any]] = {
        11: {"result": "a\x00b"},
        57: {"state": "failed", "failure": replace(BAD, message="\ud800")},
        58: {"state": "retrying", "failure": BAD, "retry": Retry(1e300)},
        120: {"state": "retrying", "failure": BAD, "retry": Retry(1.0, sent_ms=2**70)},
        199: {"children": (replace(CHILD, job=job, actor="a\x00b"),)},
    }
    journal.flush([replace(good(job, n), **bad.get(n, {})) for n in range(200)])
    assert journal.done(200)
    found = status(conn, job)
    assert (found["state"], found["succeeded"], found["failed"], found["unkept"]) == ("completed", 196, 4, 1)
    unkept = queries.run(conn, queries.item(job, 11)) or {}
    assert (unkept["state"], unkept["result"]) == ("succeeded", None)  # the work is done
    assert "NUL" in unkept["result_unkept"]
    del bad[11]
    why = {n: (queries.run(conn, queries.attempts(job, n))[0]["message"]).splitlines()[0] for n in bad}
    assert "surrogates not allowed" in why[57]
    assert "out of range" in why[58]
    assert "out of range" in why[120]
    assert "NUL" in why[199]
    assert {e.attempt.item for e in journal.acknowledged if e.dead_letter} == set(bad)
    assert drift(conn) == []


#: Ways in which a function of the user's fails, and what the item says of each.
FAULTS = {
    "RAISE 'no success of item 7'": "no success of item 7",
    "RAISE 'not of today' USING ERRCODE = 'MY001'": "not of today",
    "PERFORM 1 / 0": "division by zero",
    "INSERT INTO audit_log VALUES (1)": 'relation "audit_log" does not exist; in PL/pgSQL function audit() line 1',
    "RAISE insufficient_privilege USING MESSAGE = 'permission denied for table secrets'": "table secrets; in PL/pgSQL",
    "NEW.no_such_column := 1": "no_such_column",
    "COMMIT": "invalid transaction termination",
}


def audit(conn: Conn, fault: str, state: str, when: str = "NEW.item = 7") -> None:
    """A trigger that fails when item 7, or others, get this state."""
    conn.execute(
        f"CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fault}; RETURN NEW; END $$".encode()
    )
    conn.execute(
        "CREATE TRIGGER audit BEFORE UPDATE ON callboard.items FOR EACH ROW"
        f" WHEN ({when} AND NEW.state = '{state}') EXECUTE FUNCTION audit()".encode()
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_trigger_of_the_users_fails_by_fails_its_item_and_holds_up_no_other(
    fault: str, journal: FlushedJournal, conn: Conn
) -> None:
    job = make_job(conn, 40)
    audit(conn, fault, "succeeded")
    journal.flush([good(job, n) for n in range(40)])
    assert journal.done(40, 60)
    found = status(conn, job)
    assert (found["state"], found["succeeded"], found["failed"]) == ("completed", 39, 1)
    assert FAULTS[fault] in queries.run(conn, queries.attempts(job, 7))[0]["message"]
    assert drift(conn) == []


def test_a_trigger_of_the_users_that_waits_for_a_lock_holds_up_no_other_job(
    journal: FlushedJournal, conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another job recorded is seen after each wait: it stands behind that of the flush and that of the job."""
    conn.execute("CREATE TABLE busy ()")
    job, other = make_job(conn, 64), make_job(conn, 64)
    audit(conn, f"IF NEW.job_id = {job} THEN LOCK TABLE busy; END IF", "succeeded")
    longest_lock, seen = outcomes.longest_lock, list[int]()

    def note_wait(own: Conn) -> str:
        seen.append(status(own, other)["succeeded"])
        return longest_lock(own)

    monkeypatch.setattr(outcomes, "longest_lock", note_wait)
    with connect(database_url) as holder, holder.transaction():
        holder.execute("LOCK TABLE busy")
        journal.flush([good(one, n) for one in (job, other) for n in range(64)])
        assert wait_until(lambda: status(conn, other)["succeeded"] == 64, 300)
        assert status(conn, job)["finished_at"] is None
    assert journal.done(128)
    assert status(conn, job)["succeeded"] == 64
    assert seen[:2] == [0, 0]
    assert all(seen[2:])


@pytest.mark.parametrize("code", ["08001", "HV00N", "53300", "58030", "57014"])
def test_what_a_trigger_of_the_users_meets_that_may_pass_holds_up_no_other_job(
    code: str, journal: FlushedJournal, conn: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As when it asks another server, by a foreign table or by dblink, and that is away."""
    job, other = make_job(conn, 8), make_job(conn, 8)
    fault = f"IF NEW.job_id = {job} THEN RAISE 'the ledger is away' USING ERRCODE = '{code}'; END IF"
    audit(conn, fault, "succeeded")
    journal.flush([good(one, n) for one in (job, other) for n in range(8)])
    assert wait_until(lambda: status(conn, other)["succeeded"] == 8, 60)
    assert wait_until(lambda: f"job {job}: the ledger is away; in PL/pgSQL function audit()" in caplog.text, 60)
    assert status(conn, job)["finished_at"] is None
    conn.execute("DROP FUNCTION audit CASCADE")
    assert journal.done(16)
    assert status(conn, job)["succeeded"] == 8
    assert drift(conn) == []


def test_the_job_that_waits_for_a_function_of_the_users_is_found_while_others_are_locked(
    journal: FlushedJournal, conn: Conn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many are for moments beside load."""
    job, other = make_job(conn, 1), make_job(conn, 1)
    audit(conn, "RAISE 'the ledger is away' USING ERRCODE = '08001'", "succeeded", f"NEW.job_id = {job}")
    monkeypatch.setattr(outcomes, "locked_jobs", lambda *_: {other})
    journal.flush([good(job, 0), good(other, 0)])
    assert wait_until(lambda: status(conn, other)["succeeded"] == 1, 60)
    assert wait_until(lambda: f"job {job}: the ledger is away" in caplog.text, 60)
    assert f"job {other}" not in caplog.text
    conn.execute("DROP FUNCTION audit CASCADE")


def audit_job(conn: Conn, job: int, code: str, when: str) -> None:
    """A trigger that keeps this job from being written."""
    conn.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE 'it is under audit' USING ERRCODE = '{code}'; END $$".encode()
    )
    conn.execute(
        "CREATE TRIGGER audit BEFORE UPDATE ON callboard.jobs FOR EACH ROW"
        f" WHEN (NEW.id = {job} AND {when}) EXECUTE FUNCTION audit()".encode()
    )


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_a_job_that_a_trigger_of_the_users_keeps_from_closing_holds_up_no_other(
    code: str, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one that is cancelled meanwhile, nor one that waits for the sweep, which says why."""
    kept, waiting, cancelled = (make_job(conn, 1) for _ in range(3))
    audit_job(conn, kept, code, "NEW.finished_at IS NOT NULL")
    actions.cancel(conn, kept, ANNA)
    assert status(conn, kept)["finished_at"] is None
    jobs.stop_job(conn, waiting, "cancelled", None)
    actions.cancel(conn, cancelled, ANNA)
    assert status(conn, cancelled)["state"] == "cancelled"
    unused: Any = None
    Sweep(unused, unused).round(conn)
    assert status(conn, waiting)["state"] == "cancelled"
    assert "a step of the sweep failed, and is tried again: it is under audit" in caplog.text
    conn.execute("DROP FUNCTION audit CASCADE")
    assert jobs.close_stopped(conn) == [kept]


#: What makes jobs such that the sweep stops or closes them, what a trigger may keep it from, and their state then.
SWEPT = {
    "overdue": ("deadline = now()", "NEW.stopping IS NOT NULL", "cancelled"),
    "of an actor that nobody has": ("created_at = now() - interval '2 days'", "NEW.stopping IS NOT NULL", "failed"),
    "of a submission that broke off": (
        "sealed = false, submitting_until = now() - interval '1 s'", "NEW.finished_at IS NOT NULL", "failed"
    ),
    "not closed": ("state = 'running', finished_at = NULL", "NEW.finished_at IS NOT NULL", "completed"),
}  # fmt: skip


@pytest.mark.parametrize("code", ["P0001", "08001"])
@pytest.mark.parametrize("kind", SWEPT)
def test_a_job_that_a_trigger_of_the_users_keeps_from_being_swept_holds_up_no_other(
    kind: str, code: str, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    such, kept_from, state = SWEPT[kind]
    first, kept, last = (make_job(conn, 1) for _ in range(3))
    if state == "completed":
        for job in (first, kept, last):
            record(conn, job, {"succeeded": [0]})
    conn.execute(f"UPDATE callboard.jobs SET {such}".encode())
    audit_job(conn, kept, code, kept_from)
    unused: Any = None
    for _ in range(2):  # the second closes what the first stops
        Sweep(unused, StubTransport).round(conn)
    assert [status(conn, job)["state"] for job in (first, last)] == [state, state]
    assert status(conn, kept)["finished_at"] is None
    assert "a step of the sweep failed, and is tried again: it is under audit" in caplog.text
    conn.execute("DROP FUNCTION audit CASCADE")
    for _ in range(2):
        Sweep(unused, StubTransport).round(conn)
    assert status(conn, kept)["state"] == state


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_a_job_that_a_trigger_of_the_users_keeps_from_being_noted_holds_up_no_other(code: str, conn: Conn) -> None:
    """Neither the lease of another submission of its process, nor the start of another job."""
    first, kept, last = (make_job(conn, 1, sealed=False) for _ in range(3))
    conn.execute("UPDATE callboard.jobs SET submitting_until = now()")
    audit_job(conn, kept, code, "true")
    assert submission.renew_submissions(conn, [first, kept, last]) == [kept]
    renewed = "SELECT id FROM callboard.jobs WHERE submitting_until > now() ORDER BY 1"
    assert conn.execute(renewed).fetchall() == [(first,), (last,)]
    assert outcomes.touch_jobs(conn, {first: ("a step", 0.0), kept: (None, 0.0), last: (None, 0.0)}) == {kept}
    assert [status(conn, job)["state"] for job in (first, kept, last)] == ["running", "pending", "running"]
    assert status(conn, first)["step"] == "a step"


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_a_job_that_a_trigger_of_the_users_keeps_for_ever_has_no_other_kept(
    code: str, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    first, kept, last = (make_job(conn, 1) for _ in range(3))
    for job in (first, kept, last):
        record(conn, job, {"succeeded": [0]})
    conn.execute("UPDATE callboard.jobs SET finished_at = now() - interval '1 h'")
    audit_job(conn, kept, code, "NEW.deleted_at IS NOT NULL")
    unused: Any = None
    one, other = (Sweep(unused, StubTransport, _retention=Retention(60.0)) for _ in range(2))

    def others_gone() -> bool:  # a round deletes for half a second at most
        one.round(conn)
        return conn.execute("SELECT id FROM callboard.jobs").fetchall() == [(kept,)]

    assert wait_until(others_gone, 60)
    other.round(conn)
    assert others_gone()
    assert "a step of the sweep failed, and is tried again: it is under audit" in caplog.text


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_a_job_that_a_trigger_of_the_users_keeps_from_dropping_its_messages_has_no_other_keep_them(
    code: str, conn: Conn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "DROP_BATCH_JOBS", 1)
    first, kept, last = (make_job(conn, 1) for _ in range(3))
    for job in (first, kept, last):
        record(conn, job, {"retrying": [0]})
        actions.cancel(conn, job, ANNA)
    audit_job(conn, kept, code, "true")
    unused: Any = None
    left = "SELECT job_id FROM callboard.outbox UNION ALL SELECT job_id FROM callboard.turns WHERE job_id <> %s"

    def swept(job: int) -> list[Any]:
        Sweep(unused, StubTransport).round(conn)
        return conn.execute(left, (job,)).fetchall()

    assert wait_until(lambda: swept(kept) == [(kept,)], 60)
    assert "a step of the sweep failed, and is tried again: it is under audit" in caplog.text
    conn.execute("DROP FUNCTION audit CASCADE")
    assert wait_until(lambda: swept(0) == [], 60)


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_a_job_of_stages_that_a_trigger_of_the_users_keeps_from_being_updated_holds_up_no_other(
    code: str, conn: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it end a heartbeat with an error, which would be taken for an outage of the database."""
    kept, other = (make_staged(conn)[0] for _ in range(2))
    conn.execute("UPDATE callboard.jobs SET state = 'pending', started_at = NULL WHERE stages IS NOT NULL")
    conn.execute("INSERT INTO callboard.stage_changes (parent_id) VALUES (%s), (%s)", (kept, other))
    audit_job(conn, kept, code, "true")
    with process_on(database_url) as process:
        StageMaker(process, lambda _: None).make_due(conn)
    states = "SELECT state::text FROM callboard.jobs WHERE stages IS NOT NULL ORDER BY id"
    assert conn.execute(states).fetchall() == [("pending",), ("running",)]
    unused: Any = None
    Sweep(unused, StubTransport).round(conn)
    assert "a step of the sweep failed, and is tried again: it is under audit" in caplog.text
    conn.execute("DROP FUNCTION audit CASCADE")
    assert stages.update_parents(conn) == []
    assert conn.execute(states).fetchall() == [("running",), ("running",)]


@pytest.mark.parametrize("code", ["P0001", "08001", "55P03"])
def test_a_job_that_a_trigger_of_the_users_keeps_from_being_claimed_holds_up_no_other(
    code: str, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the first in turn, each time. When nothing else is to be published, nobody looks for it again and again."""
    relay = relay_to(StubTransport())
    kept, *others = (make_job(conn, 1, published=0) for _ in range(3))
    audit_job(conn, kept, code, "true")
    assert relay.publish_job(conn, kept, []) is None
    for _ in others:
        assert relay.publish_due(conn)
    assert not relay.publish_due(conn)
    assert [status(conn, job)["queued"] for job in (kept, *others)] == [0, 1, 1]
    assert f"job {kept}: it is under audit" in caplog.text
    conn.execute("DROP FUNCTION audit CASCADE")
    assert relay_to(StubTransport()).publish_due(conn)
    assert status(conn, kept)["queued"] == 1


def test_a_job_whose_trigger_waits_for_a_lock_keeps_no_other_from_being_published(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.05)
    conn.execute("CREATE TABLE busy ()")
    relay, kept, other = relay_to(StubTransport()), make_job(conn, 1, published=0), make_job(conn, 1, published=0)
    conn.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN LOCK TABLE busy; RETURN NEW; END $$"
    )
    conn.execute(
        "CREATE TRIGGER audit BEFORE UPDATE ON callboard.jobs FOR EACH ROW"
        f" WHEN (NEW.id = {kept}) EXECUTE FUNCTION audit()".encode()
    )
    with connect(database_url) as own, ThreadPoolExecutor(1) as thread, connect(database_url) as holder:
        with holder.transaction():
            holder.execute("LOCK TABLE busy")
            assert thread.submit(relay.publish_due, own).result(300)
        assert [status(conn, job)["queued"] for job in (kept, other)] == [0, 1]
        assert relay_to(StubTransport()).publish_due(own)
    assert status(conn, kept)["queued"] == 1


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_no_more_is_published_of_a_job_that_a_trigger_of_the_users_keeps_from_being_settled(
    code: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few messages wait in memory; each is published once, and those of another job meanwhile."""
    transport, published = StubTransport(), list[tuple[int, int]]()

    def publish(batch: Sequence[Outgoing]) -> list[Answer]:
        published.extend((out.job, out.item) for out in batch)
        return [True] * len(batch)

    monkeypatch.setattr(module, "OUTBOX_BATCH_MESSAGES", 1)
    monkeypatch.setattr(transport, "publish", publish)
    relay = relay_to(transport)
    kept, other = make_job(conn, 3), make_job(conn, 3)
    for job in (kept, other):
        record(conn, job, {"retrying": range(3)}, delay=0.0)
    audit_job(conn, kept, code, "true")
    while relay.publish_due(conn):
        continue
    assert len(relay._unsettled) == 1
    assert sorted(published) == [(kept, 0), *((other, item) for item in range(3))]
    conn.execute("DROP FUNCTION audit CASCADE")
    relay.settle(conn)
    while relay.publish_due(conn):
        continue
    assert sorted(published) == [(job, item) for job in (kept, other) for item in range(3)]
    assert conn.execute("SELECT FROM callboard.outbox").rowcount == 0
    assert drift(conn) == []


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_what_is_published_of_a_job_that_a_trigger_of_the_users_keeps_from_being_settled_is_settled_later(
    code: str, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    """What is published of other jobs is settled, and nobody publishes the messages of that job again."""
    relay = relay_to(StubTransport())
    kept, other = make_job(conn, 1), make_job(conn, 1)
    for job in (kept, other):
        record(conn, job, {"retrying": [0]}, delay=0.0)
    audit_job(conn, kept, code, "true")
    left, now = "SELECT job_id, claimed_until >= %s + interval '8 s' FROM callboard.outbox", "SELECT now()"
    before = conn.execute(now).fetchone()
    assert relay.publish_outbox(conn, claim_outbox(conn, 10)) == 2
    assert conn.execute(left, before).fetchall() == [(kept, True)]
    assert f"job {kept}: it is under audit" in caplog.text
    conn.execute("UPDATE callboard.outbox SET claimed_until = now() + interval '1 s'")
    before = conn.execute(now).fetchone()
    relay.settle(conn)
    assert conn.execute(left, before).fetchall() == [(kept, True)]
    conn.execute("DROP FUNCTION audit CASCADE")
    relay.settle(conn)
    assert conn.execute(left, before).fetchall() == []
    assert relay.settle_at == math.inf


@pytest.mark.parametrize("code", ["P0001", "08001"])
def test_a_standing_job_that_a_trigger_of_the_users_keeps_open_holds_up_no_other(
    code: str, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    """At midnight the sweep seals those of all actors."""
    kept, others = sends.standing_job(conn, "kept", "default"), [sends.standing_job(conn, n, "default") for n in "ab"]
    conn.execute("UPDATE callboard.jobs SET standing_on = standing_on - 1")
    audit_job(conn, kept, code, "NEW.sealed")
    unused: Any = None
    Sweep(unused, unused).round(conn)
    assert conn.execute("SELECT id FROM callboard.jobs WHERE sealed ORDER BY id").fetchall() == [(n,) for n in others]
    assert "a step of the sweep failed, and is tried again: it is under audit" in caplog.text


def test_a_function_of_ours_in_the_search_path_is_not_taken_for_the_users(conn: Conn) -> None:
    job = make_job(conn, 1)
    conn.execute("SET search_path = callboard, public")
    conn.execute("ALTER TABLE callboard.turns RENAME TO lost")
    with pytest.raises(psycopg.errors.UndefinedTable):
        claims.park(conn, [(job, 0, 1)])


@pytest.mark.parametrize("how", ["refused", "locked"])
def test_the_other_items_of_a_dead_worker_run_again(how: str, conn: Conn, database_url: str) -> None:
    """That of one is refused by a trigger of the user's, or another transaction has locked one of its job."""
    job, other_job, dead = make_job(conn, 10), make_job(conn, 1), make_worker(conn)
    run(conn, job, range(10), worker=dead)
    run(conn, other_job, [0], worker=dead)
    workers.stop_worker(conn, dead)
    if how == "refused":
        audit(conn, "INSERT INTO audit_log VALUES (1)", "retrying")
        assert rescue(conn, dead) == 11
        assert "audit_log" in queries.run(conn, queries.attempts(job, 7))[0]["message"]
    else:
        with connect(database_url) as other, other.transaction():
            other.execute("SELECT FROM callboard.items WHERE job_id = %s AND item = 7 FOR UPDATE", (job,))
            assert rescue(conn, dead) == 1
        assert workers.dead_workers(conn) == [dead]
        assert rescue(conn, dead) == 10
    found = status(conn, job)
    assert (found["failed"], found["retrying"]) == ((1, 9) if how == "refused" else (0, 10))
    assert drift(conn) == []


def test_a_death_is_not_charged_to_more_items_since_one_of_them_was_locked(conn: Conn, database_url: str) -> None:
    guilty, innocent, late = make_job(conn, 1), make_job(conn, 1), make_job(conn, 1)
    dead, crashes = [make_worker(conn) for _ in range(2)], "SELECT job_id, coalesce(crashes, 0) FROM callboard.items"
    run(conn, guilty, [0], worker=dead[0])
    workers.stop_worker(conn, dead[0])
    assert rescue(conn, dead[0]) == 1
    held = [Running(guilty, 0, 2, 1.0, None), Running(innocent, 0, 1, 1.0, None)]
    outcomes.report_running(conn, dead[1], held)
    workers.stop_worker(conn, dead[1])
    with connect(database_url) as other, other.transaction():
        other.execute("SELECT FROM callboard.items WHERE job_id = %s FOR UPDATE", (innocent,))
        assert rescue(conn, dead[1]) == 1
    run(conn, late, [0], worker=dead[1])
    assert rescue(conn, dead[1]) == 2
    assert dict(conn.execute(crashes).fetchall()) == {guilty: 2, innocent: 0, late: 1}
    assert drift(conn) == []


def test_a_job_whose_trigger_waits_for_a_lock_is_tried_once_in_a_rescue(
    conn: Conn, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    conn.execute("CREATE TABLE busy ()")
    job, other_job, dead = make_job(conn, 4), make_job(conn, 1), make_worker(conn)
    audit(conn, "LOCK TABLE busy", "retrying", f"NEW.job_id = {job}")
    run(conn, job, range(4), worker=dead)
    run(conn, other_job, [0], worker=dead)
    workers.stop_worker(conn, dead)
    with connect(database_url) as holder, holder.transaction():
        holder.execute("LOCK TABLE busy")
        assert rescue(conn, dead) == 1
        assert caplog.text.count("can't be requeued yet") == 1
    assert rescue(conn, dead) == 4
    assert status(conn, job)["retrying"] == 4


TAMPERED = [
    "succeeded = total - retrying",
    "succeeded = total, retrying = 0, state = 'completed', finished_at = now()",
    "total = 10, bulk_end = 10, watermark = 10, published = 10",
    "retrying = 0",
    "skipped = 30, retries = 7, crashes = 9, published = 2",
]


@pytest.mark.parametrize("tampered", TAMPERED)
def test_no_item_fails_because_counters_drifted(
    tampered: str, journal: FlushedJournal, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    """They are repaired with an alarm, and everything is recorded as it ended."""
    other, job = make_job(conn, 10), make_job(conn, 40)
    parked = Event(job, 0, 1, "retrying", 0.1, time.monotonic(), 1, BAD, Retry(0.0))
    journal.flush([parked, *(good(job, n) for n in range(1, 10))])
    assert journal.done(10)
    conn.execute(f"UPDATE callboard.jobs SET {tampered} WHERE id = %s", (job,))
    assert drift(conn) != []
    journal.flush(
        [*(good(other, n) for n in range(10)), replace(good(job, 0), attempt=2), *(good(job, n) for n in range(10, 40))]
    )
    assert journal.done(51)
    for number, total in ((other, 10), (job, 40)):
        found = status(conn, number)
        assert (found["state"], found["succeeded"], found["failed"]) == ("completed", total, 0)
    assert drift(conn) == []
    alarms = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert alarms
    assert all(f"job {job}: " in alarm.getMessage() for alarm in alarms)


def test_a_flush_that_waits_for_a_recount_adds_to_it(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 20)
    conn.execute("UPDATE callboard.jobs SET succeeded = 5 WHERE id = %s", (job,))
    with connect(database_url) as mending, ThreadPoolExecutor(1) as pool:
        with mending.transaction():
            repair_counters(mending, [job])
            events = [good(job, n) for n in range(10)]
            flushed = pool.submit(outcomes.record, conn, events, time.monotonic())
            assert wait_until(lambda: waits(database_url), 300)
        flushed.result(300)
    assert drift(conn) == []


def test_a_recount_waits_for_a_flush_and_counts_it(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 20)
    conn.execute("UPDATE callboard.jobs SET succeeded = 5 WHERE id = %s", (job,))
    with connect(database_url) as flushing, ThreadPoolExecutor(1) as pool:
        with flushing.transaction():
            outcomes.record(flushing, [good(job, n) for n in range(10)], time.monotonic())
            mended = pool.submit(repair_counters, conn, [job])
            assert wait_until(lambda: waits(database_url), 300)
        mended.result(300)
    assert drift(conn) == []


def test_a_rescue_works_when_counters_drifted(conn: Conn) -> None:
    job, worker = make_job(conn, 1), make_worker(conn)
    assert claims.claim_item(conn, job, 0, 1, worker) is not None
    workers.stop_worker(conn, worker)
    conn.execute("UPDATE callboard.jobs SET skipped = 1 WHERE id = %s", (job,))
    assert rescue(conn, worker) == 1
    assert drift(conn) == []


@pytest.mark.parametrize("table", ["attempts", "jobs"])
def test_the_journal_waits_for_a_missing_table(
    table: str, journal: FlushedJournal, conn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    """No data is to blame: nothing fails, the error is logged, and all goes on when the table is there again."""
    job = make_job(conn, 10)
    conn.execute(f"ALTER TABLE callboard.{table} RENAME TO elsewhere")
    journal.flush([good(job, n) for n in range(10)])
    assert wait_until(lambda: caplog.text.count("the database refuses to record outcomes; trying again") >= 3, 300)
    assert f'relation "callboard.{table}" does not exist' in caplog.text
    assert journal.acknowledged == []
    conn.execute(f"ALTER TABLE callboard.elsewhere RENAME TO {table}")
    assert journal.done(10)
    assert (status(conn, job)["succeeded"], drift(conn)) == (10, [])


def test_a_plan_from_before_a_migration_is_not_used_again(journal: FlushedJournal, conn: Conn) -> None:
    job = make_job(conn, 30)
    for n in range(20):
        journal.flush([good(job, n)])
        assert journal.done(n + 1)
    conn.execute("ALTER TABLE callboard.jobs ALTER epoch TYPE bigint")
    journal.flush([good(job, n) for n in range(20, 30)])
    assert journal.done(30)
    assert (status(conn, job)["succeeded"], status(conn, job)["failed"]) == (30, 0)


def test_connections_to_a_read_only_server_are_not_kept(database_url: str, conn: Conn) -> None:
    """After a failover the address leads to the new server, and connections made before do not."""
    job = make_job(conn, 10)
    name = conn.info.dbname
    conn.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with kept(database_url) as journal:
        assert wait_until(lambda: journal.journal.process.pool.get_stats().get("pool_available", 0) > 0, 300)
        conn.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        journal.flush([good(job, n) for n in range(10)])
        assert journal.done(10)
    assert (status(conn, job)["succeeded"], drift(conn)) == (10, [])
