"""How finished jobs leave: when, for whom they are gone, that all of their rows go, and that nothing is blocked."""

import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from callboard.commands.jobs import purge
from callboard.commands.main import main
from callboard.middleware.attempts.claim import claim
from callboard.middleware.callbacks.dispatcher import payload
from callboard.middleware.sweep import retention
from callboard.middleware.sweep.retention import Retention
from callboard.sql import timings
from callboard.sql.limits import Limits
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import Event, NewItem, Retry
from callboard.sql.statements import statement
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import (
    actions,
    callbacks,
    claims,
    outcomes,
    publishing,
    retry_action,
    sends,
    submission,
    sweep,
    tokens,
    workers,
)
from callboard.sql.writes import retention as deletion
from callboard.sql.writes import stages as staged
from callboard.sql.writes.jobs import close_jobs, close_stopped, stop_overdue_jobs
from callboard.sql.writes.requests import NoSuchJob, NotPossible, Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.databases import waits
from tests.support.deliveries import make_attempt
from tests.support.jobs import (
    BAD,
    claim_outbox,
    let_midnight_pass,
    make_job,
    make_staged,
    make_worker,
    record,
    run,
    send,
    targets,
)
from tests.support.programs import Call
from tests.support.programs import run as command
from tests.support.webapp import open_app, served
from tests.support.workers import wait_until

ANNA = Requester("python", "anna")
DAY = 86_400.0


def drift(conn: Conn) -> list[Any]:
    return list(queries.run(conn, queries.verify())["drift"])


CALLED = targets("tell")


def ended(conn: Conn, items: int = 10, *, days: float = 0.0, keep: str | None = None, **more: Any) -> int:
    """A job that is completed, with failures and skips, and was so many days ago."""
    job = make_job(conn, items, **more)
    if keep is not None:
        actions.limit(conn, job, ANNA, {"keep": keep})
    record(conn, job, {"retrying": [0], "failed": [1], "skipped": [2]}, delay=0.0)
    publishing.confirm_outbox(conn, claim_outbox(conn, 10))
    record(conn, job, {"failed": [0]}, attempt=2)
    sweep.sample_jobs(conn)
    record(conn, job, {"succeeded": range(3, items)})
    age(conn, job, days)
    return job


def age(conn: Conn, job: int, days: float) -> None:
    conn.execute(
        "UPDATE callboard.jobs SET finished_at = now() - make_interval(secs => %s) WHERE id = %s", (days * DAY, job)
    )


def test_who_is_to_be_called_is_called_before_its_job_leaves(conn: Conn) -> None:
    """Deleted by hand it goes at once."""
    jobs = [ended(conn, keep=keep, targets=CALLED) for keep in ("1s", "forever", "1s")]
    for job in jobs[:2]:
        conn.execute("UPDATE callboard.jobs SET finished_at = finished_at - interval '1 min' WHERE id = %s", (job,))
    conn.execute(
        "UPDATE callboard.callbacks AS c SET ended_at = j.finished_at FROM callboard.jobs AS j WHERE j.id = c.job_id"
    )
    assert deletion.mark_expired(conn, None) == []
    called = callbacks.claim_callbacks(conn, webhooks=False, limit=10)
    assert [callback.job for callback in called] == jobs
    for callback in called[:2]:
        assert payload(conn, callback)["limits"] == {"keep": "1s" if callback.job == jobs[0] else "forever"}
        callbacks.mark_delivered(conn, callback)
    assert deletion.mark_expired(conn, None) == jobs[:1]
    assert deletion.mark_deleted(conn, [jobs[2]])


def finished_stages(conn: Conn) -> tuple[int, list[int]]:
    """A job of two stages that is completed, with these."""
    parent, found = make_staged(conn)
    record(conn, found[1], {"succeeded": range(1, 8)})
    staged.update_parents(conn)
    assert state(conn, parent) == "completed"
    return parent, found


def test_a_job_of_stages_leaves_as_a_whole(conn: Conn) -> None:
    """Not by a stage alone, however long that is over; and not while a stage is open."""
    parent, (first, second) = make_staged(conn)
    actions.limit(conn, parent, ANNA, {"keep": "1d"})
    age(conn, first, 400)
    with pytest.raises(NotPossible, match=f"is a stage of job {parent}: delete that"):
        actions.delete(conn, first, ANNA)
    with pytest.raises(NotPossible, match="it can be deleted when it is over"):
        actions.delete(conn, parent, ANNA)
    assert deletion.mark_expired(conn, DAY) == []
    record(conn, second, {"succeeded": range(1, 8)})
    staged.update_parents(conn)
    assert state(conn, parent) == "completed"
    for job in (first, second):
        age(conn, job, 400)
    assert deletion.mark_expired(conn, DAY) == []
    age(conn, parent, 2)
    assert deletion.mark_expired(conn, None) == [parent, first, second]
    assert [state(conn, job) for job in (parent, first, second)] == [None] * 3
    assert drift(conn) == []
    assert [clear(conn, job) for job in deletion.deleted_jobs(conn)] == [0, 10, 8]
    assert conn.execute("SELECT count(*) FROM callboard.jobs").fetchone() == (0,)


def stopped(conn: Conn, items: int = 10) -> int:
    """A job that was cancelled, whose messages lie in RabbitMQ."""
    job = make_job(conn, items)
    actions.cancel(conn, job, ANNA)
    conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 hour' WHERE id = %s", (job,))
    close_stopped(conn)
    return job


def state(conn: Conn, job: int) -> str | None:
    found = queries.run(conn, queries.job(job))
    return None if found is None else str(found["state"])


def tables(conn: Conn) -> list[str]:
    """Every table whose rows belong to a job."""
    found = conn.execute(
        "SELECT table_name FROM information_schema.columns"
        " WHERE table_schema = 'callboard' AND column_name = 'job_id' ORDER BY 1"
    )
    return [row[0] for row in found]


def rows(conn: Conn, job: int) -> dict[str, int]:
    """How many rows of each table belong to a job."""
    count = sql.SQL("SELECT count(*) FROM callboard.{} WHERE job_id = %s")
    return {table: next(conn.execute(count.format(sql.Identifier(table)), (job,)))[0] for table in tables(conn)}


def clear(conn: Conn, job: int) -> int:
    return sum(deletion.delete_rows(conn, job))


# When ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "keep", "default", "leaves"),
    [
        (29, None, 30, False),
        (31, None, 30, True),
        (31, "40d", 30, False),
        (31, "forever", 30, False),
        (3, "2d", 30, True),
        (3, "2d", None, True),
        (400, None, None, False),
    ],
)
def test_a_job_leaves_when_its_time_is_over(
    days: float, keep: str | None, default: float | None, leaves: bool, conn: Conn
) -> None:
    job = ended(conn, days=days, keep=keep)
    make_job(conn, 1)
    due = deletion.mark_expired(conn, None if default is None else default * DAY)
    assert due == ([job] if leaves else [])
    assert state(conn, job) == (None if leaves else "completed")


def test_an_open_job_never_leaves(conn: Conn) -> None:
    jobs = [make_job(conn, 3), make_job(conn, 3)]
    actions.limit(conn, jobs[0], ANNA, {"keep": "1s"})
    actions.pause(conn, jobs[1], ANNA)
    conn.execute("UPDATE callboard.jobs SET created_at = '2020-01-01', updated_at = '2020-01-01'")
    assert deletion.mark_expired(conn, 1.0) == []
    for job in jobs:
        with pytest.raises(NotPossible, match=r"can be deleted when it is over; `cancel` ends it"):
            actions.delete(conn, job, ANNA)
    assert all(state(conn, job) for job in jobs)


def test_how_long_is_said_at_any_time(conn: Conn) -> None:
    job = ended(conn, days=3)
    actions.limit(conn, job, ANNA, {"keep": "2d"})
    assert deletion.mark_expired(conn, 30 * DAY) == [job]
    other = ended(conn, days=3, keep="2d")
    actions.limit(conn, other, ANNA, {"keep": None})
    assert deletion.mark_expired(conn, 30 * DAY) == []
    made = submission.create_job(
        conn, name="kept", key=None, tenant="", actor="work", queue="default", metadata={}, created_by=None,
        limits=Limits(keep=timedelta(days=7)),
    )  # fmt: skip
    assert conn.execute("SELECT keep, limits FROM callboard.jobs WHERE id = %s", (made.job,)).fetchone() == (
        7 * DAY, {"keep": "604800s"},
    )  # fmt: skip


@pytest.mark.parametrize("keep", ["0s", "soon", "-1d", "36526d", 5, timedelta(0), timedelta(days=-1), ""])
def test_a_time_that_makes_no_sense_is_refused(keep: Any) -> None:
    with pytest.raises(ValueError, match="keep must be a span like 90s, 5m, 2h, 30d, or forever"):
        Limits(keep=keep)


@pytest.mark.parametrize(("value", "seconds"), [(None, 30 * DAY), ("", 30 * DAY), ("2h", 7200.0), ("forever", None)])
def test_the_setting_says_how_long(value: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALLBOARD_KEEP", raising=False)
    if value is not None:
        monkeypatch.setenv("CALLBOARD_KEEP", value)
    assert Retention().keep == seconds


# Gone ----------------------------------------------------------------------------------------------------------------


def test_a_leaving_job_is_gone_for_everybody(conn: Conn, caplog: pytest.LogCaptureFixture) -> None:
    job, other = ended(conn), ended(conn, name="another")
    with caplog.at_level(logging.INFO):
        actions.delete(conn, job, ANNA)
    assert f"job {job} is deleted by 'anna', python" in caplog.text
    assert queries.run(conn, queries.job(job)) is None
    page, _ = queries.run(conn, queries.jobs())
    assert [found["id"] for found in page] == [other]
    assert queries.run(conn, queries.items(job)) == ([], None)
    for word in ITEM_STATES:
        assert queries.run(conn, queries.items(job, state=word)) == ([], None)
    assert queries.run(conn, queries.item(job, 1)) is None
    assert queries.run(conn, queries.attempts(job, 1)) == []
    assert queries.run(conn, queries.errors(job)) == []
    assert queries.run(conn, queries.actions(job)) == ([], None)
    assert queries.run(conn, queries.verify())["jobs"] == 1
    assert rows(conn, job)["items"] == 10  # they are there still
    says: list[Any] = [
        lambda: actions.delete(conn, job, ANNA), lambda: actions.cancel(conn, job, ANNA),
        lambda: actions.pause(conn, job, ANNA), lambda: actions.resume(conn, job, ANNA),
        lambda: actions.limit(conn, job, ANNA, {"rate": "1/s"}),
        lambda: retry_action.retry(conn, job, ANNA, RetrySelection()),
    ]  # fmt: skip
    for say in says:
        with pytest.raises(NoSuchJob, match=f"there is no job {job}"):
            say()
    assert deletion.mark_expired(conn, 0.001) == [other]


def test_its_key_and_its_day_are_free_at_once(conn: Conn) -> None:
    def made() -> Any:
        return submission.create_job(
            conn, name="keyed", key="ads-1", tenant="t", actor="work", queue="default", metadata={}, created_by=None
        )

    first = made()
    submission.seal_job(conn, first.job)
    assert made().job == first.job
    actions.delete(conn, first.job, ANNA)
    again = made()
    assert (again.job != first.job, again.consumed) == (True, 0)
    day = sends.standing_job(conn, "work", "default")
    submission.seal_job(conn, day)
    actions.delete(conn, day, ANNA)
    assert sends.standing_job(conn, "work", "default") != day


def test_a_standing_job_of_a_past_day_leaves_and_its_messages_are_new(conn: Conn) -> None:
    day = sends.standing_job(conn, "work", "default")
    item = NewItem(day, "work", "default", "m1", b"{}", None, 0, key="message:m1", published=True)
    sends.add_items(conn, [item], publishing=False)
    submission.seal_job(conn, day)
    record(conn, day, {"succeeded": [0]})
    let_midnight_pass(conn)
    known = [("work", "message:m1", 0, False)]
    assert sends.items_by_key(conn, known) == {("work", "message:m1"): (day, 0)}
    age(conn, day, 31)
    assert deletion.mark_expired(conn, 30 * DAY) == [day]
    assert sends.items_by_key(conn, known) == {}
    assert clear(conn, day) == 1


# All of its rows -----------------------------------------------------------------------------------------------------


def test_every_table_of_a_jobs_rows_is_cleared(conn: Conn) -> None:
    cleared = " ".join(statement(name) for name in ("delete_items", "delete_item_rows", "delete_job_rows"))
    assert set(re.findall(r"DELETE FROM callboard\.(\w+)", cleared)) == {*tables(conn), "jobs"}


def test_all_of_its_rows_go_in_chunks_and_nobody_elses(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "CHUNK_ITEMS", 30)
    job, other = (ended(conn, 100, keep="1d", targets=CALLED) for _ in range(2))
    for one in (job, other):
        retry_action.retry(conn, one, ANNA, RetrySelection())
        run(conn, one, [5], worker=make_worker(conn))  # as a fault might leave it
        conn.execute(
            "INSERT INTO callboard.running (job_id, item, attempt, worker, started_at) VALUES (%s, 6, 1, 1, now())",
            (one,),
        )
        conn.execute("INSERT INTO callboard.lanes (job_id, item, lane) VALUES (%s, 7, 'anna')", (one,))
        conn.execute("INSERT INTO callboard.send_leases (job_id, first_item, ends_at) VALUES (%s, 8, now())", (one,))
        tokens.create(conn, ANNA, name="anna", job=one)
        actions.cancel(conn, one, ANNA)
        conn.execute("UPDATE callboard.jobs SET control_at = NULL, state = 'cancelled', stopping = NULL,"
                     " finished_at = now() WHERE id = %s", (one,))  # fmt: skip
    before = rows(conn, other)
    assert all(before.values()), before
    actions.delete(conn, job, ANNA)
    steps = deletion.delete_rows(conn, job)
    sizes = []
    for size in steps:
        sizes.append(size)
        assert drift(conn) == []
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
    assert sizes == [30, 30, 30, 10, 0]
    assert set(rows(conn, job).values()) == {0}
    assert rows(conn, other) == before
    assert conn.execute("SELECT count(*) FROM callboard.jobs").fetchone() == (1,)
    assert clear(conn, job) == 0


def test_who_stops_in_between_is_gone_on_from(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "CHUNK_ITEMS", 10)
    job = ended(conn, 50)
    actions.delete(conn, job, ANNA)
    first = deletion.delete_rows(conn, job)
    assert [next(first), next(first)] == [10, 10]
    assert rows(conn, job)["items"] == 30
    assert list(deletion.delete_rows(conn, job)) == [10, 10, 10, 0]
    assert list(first) == []


def test_a_round_of_the_sweep_does_a_little(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "CHUNK_ITEMS", 10)
    monkeypatch.setattr(retention, "BUDGET_SECONDS", -1.0)
    jobs = [ended(conn, 20, days=31), ended(conn, 20, days=31)]
    sweeps = Retention(30 * DAY)
    left = []
    for _ in range(6):
        sweeps.round(conn)
        left.append(sum(rows(conn, job)["items"] for job in jobs))
    assert left == [30, 20, 20, 10, 0, 0]
    assert conn.execute("SELECT count(*) FROM callboard.jobs").fetchone() == (0,)


def test_workers_that_ended_long_ago_are_forgotten(conn: Conn) -> None:
    ids = [make_worker(conn) for _ in range(5)]
    job = make_job(conn, 1)
    run(conn, job, [0], worker=ids[3])
    old = "now() - interval '31 days'"
    conn.execute(f"UPDATE callboard.workers SET stopped_at = {old} WHERE id IN ({ids[0]}, {ids[3]})")
    conn.execute(f"UPDATE callboard.workers SET died_at = {old} WHERE id = {ids[1]}")
    conn.execute(f"UPDATE callboard.workers SET stopped_at = now() WHERE id = {ids[2]}")
    deletion.delete_old_rows(conn, None)
    assert len(queries.run(conn, queries.workers())[0]) == 5
    deletion.delete_old_rows(conn, 30 * DAY)
    # One holds an item that is to be given back, one ended just now, one lives.
    assert sorted(worker["id"] for worker in queries.run(conn, queries.workers())[0]) == ids[2:]


def test_a_job_that_other_rows_refer_to_is_set_aside_and_others_go(
    conn: Conn, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "BUDGET_SECONDS", 300.0)
    kept, cascading, plain = (ended(conn, name=name, days=40) for name in ("kept", "cascading", "plain"))
    conn.execute("CREATE TABLE strict (job bigint REFERENCES callboard.jobs)")
    conn.execute("CREATE TABLE follows (job bigint REFERENCES callboard.jobs ON DELETE CASCADE)")
    conn.execute("INSERT INTO strict VALUES (%s)", (kept,))
    conn.execute("INSERT INTO follows VALUES (%s)", (cascading,))
    conn.execute("CREATE TABLE last (job bigint REFERENCES callboard.jobs DEFERRABLE INITIALLY DEFERRED)")
    late = ended(conn, name="late", days=40)
    conn.execute("INSERT INTO last VALUES (%s)", (late,))
    conn.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is under audit'; END $$"
    )
    conn.execute(
        "CREATE TRIGGER keep BEFORE DELETE ON callboard.jobs FOR EACH ROW WHEN (OLD.name = 'audited')"
        " EXECUTE FUNCTION keep()"
    )
    audited = ended(conn, name="audited", days=40)
    Retention(30 * DAY).round(conn)
    assert deletion.deleted_jobs(conn) == []
    aside = deletion.jobs_set_aside(conn, [kept, cascading, plain, late, audited])
    assert set(aside) == {kept, late, audited}
    assert aside[audited] == "it can't be deleted: it is under audit"
    assert conn.execute("SELECT count(*) FROM follows").fetchone() == (0,)
    reason = deletion.jobs_set_aside(conn, [kept])[kept]
    assert 'violates foreign key constraint "strict_job_fkey" on table "strict"' in reason
    assert reason.endswith("declare the foreign key ON DELETE CASCADE, or delete those rows")
    assert f"job {kept} is set aside: {reason}" in caplog.text
    assert "DETAIL" not in caplog.text
    env = {"DATABASE_URL": database_url}
    purged = command(tmp_path, "purge", str(kept), env=env)
    assert (purged.returncode, purged.stdout) == (1, "deleted 0 jobs with 0 items\n")
    assert purged.stderr == f"callboard: job {kept}: {reason}\n"
    conn.execute("DELETE FROM strict")
    assert list(deletion.delete_rows(conn, kept)) == [0]
    assert deletion.jobs_set_aside(conn, [kept]) == {}


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("INSERT INTO dropped_table VALUES (OLD.id)", 'relation "dropped_table" does not exist'),
        ("RAISE 'the ledger is away' USING ERRCODE = '08001'", "the ledger is away"),
    ],
)
def test_a_job_that_a_trigger_with_a_fault_keeps_is_set_aside_and_others_go(
    statement: str, fault: str, conn: Conn, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BUDGET_SECONDS", 300.0)
    kept, plain = (ended(conn, name=name, days=40) for name in ("kept", "plain"))
    conn.execute(
        f"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN OLD; END $$".encode()
    )
    conn.execute(
        "CREATE TRIGGER note BEFORE DELETE ON callboard.jobs FOR EACH ROW WHEN (OLD.name = 'kept')"
        " EXECUTE FUNCTION note()"
    )
    at = "RAISE" if statement.startswith("RAISE") else "SQL statement"
    why = f"it can't be deleted: {fault}; in PL/pgSQL function note() line 1 at {at}"
    Retention(30 * DAY).round(conn)
    assert deletion.jobs_set_aside(conn, [kept, plain]) == {kept: why}
    assert deletion.deleted_jobs(conn, aside=True) == [kept]
    purged = command(tmp_path, "purge", str(kept), env={"DATABASE_URL": database_url})
    assert purged.stderr == f"callboard: job {kept}: {why}\n"


@pytest.mark.parametrize(("table", "deleted"), [("jobs", [5]), ("items", [])])
def test_a_job_of_which_a_trigger_keeps_rows_is_set_aside(table: str, deleted: list[int], conn: Conn) -> None:
    """NEW is null in a deletion: a BEFORE trigger that returns it has the row stay, and says nothing."""
    kept = ended(conn, items=5)
    conn.execute("CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    conn.execute(
        f"CREATE TRIGGER note BEFORE DELETE ON callboard.{table} FOR EACH ROW EXECUTE FUNCTION note()".encode()
    )
    deletion.mark_deleted(conn, [kept])
    assert list(islice(deletion.delete_rows(conn, kept), 5)) == deleted
    why = f"it can't be deleted: a trigger keeps rows of callboard.{table}, as one that returns NULL or NEW does"
    assert deletion.jobs_set_aside(conn, [kept]) == {kept: why}
    conn.execute(f"DROP TRIGGER note ON callboard.{table}".encode())
    assert sum(deletion.delete_rows(conn, kept)) == 5 - sum(deleted)
    assert conn.execute("SELECT count(*) FROM callboard.items").fetchone() == (0,)


def test_a_job_that_a_long_transaction_of_the_apps_refers_to_holds_up_no_other(conn: Conn, database_url: str) -> None:
    referred, child, own, *others = jobs = [ended(conn, name=str(n), days=40) for n in range(4)]
    conn.execute("CREATE TABLE follows (job bigint REFERENCES callboard.jobs ON DELETE CASCADE)")
    conn.execute("INSERT INTO follows VALUES (%s)", (child,))
    deletion.mark_deleted(conn, jobs)
    with psycopg.connect(database_url, application_name="an app") as app:
        app.execute("INSERT INTO follows VALUES (%s)", (referred,))
        app.execute("SELECT FROM follows WHERE job = %s FOR UPDATE", (child,))
        app.execute("SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE", (own,))
        conn.execute("SET statement_timeout = '20s'")  # a deletion that waits for the app fails, and does not hang
        for job in jobs:
            if job != own:
                list(deletion.delete_rows(conn, job, 0.1))
        with pytest.raises(
            TimeoutError, match=f"its row is locked, perhaps by process {app.info.backend_pid} of an app"
        ):
            list(deletion.delete_rows(conn, own, 0.1))
        assert not {*others}.intersection(deletion.deleted_jobs(conn, aside=True))
        aside = deletion.jobs_set_aside(conn, jobs)
        assert set(aside) == {referred, child}
        assert all(
            f"is locked, perhaps by process {app.info.backend_pid} of an app" in reason for reason in aside.values()
        )
        app.rollback()
    for job in jobs:
        list(deletion.delete_rows(conn, job, 0.1))
    assert deletion.deleted_jobs(conn, aside=True) == []
    assert conn.execute("SELECT count(*) FROM follows").fetchone() == (0,)


def test_a_job_whose_own_row_is_locked_holds_up_no_later_one(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long a round may take: here it is over at once."""
    monkeypatch.setattr(timings, "LOCK_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(retention, "BUDGET_SECONDS", 0.0)
    jobs = own, *_ = [ended(conn, name=str(n), days=40) for n in range(3)]
    sweeper = Retention(None)
    deletion.mark_deleted(conn, jobs)
    with psycopg.connect(database_url, application_name="an app") as app:
        app.execute("SELECT FROM callboard.jobs WHERE id = %s FOR SHARE", (own,))
        for _ in range(8):
            sweeper.round(conn)
        assert deletion.deleted_jobs(conn, aside=True) == [own]
        warned = [
            text for text in caplog.messages if text.startswith(f"job {own} is not deleted yet: its row is locked")
        ]
        assert len(warned) == 1, caplog.messages
        assert f"process {app.info.backend_pid} of an app" in warned[0]
        app.rollback()
    sweeper.round(conn)
    assert deletion.deleted_jobs(conn) == [own], "it is left alone for a minute"
    monkeypatch.setattr(retention, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 61))
    for _ in range(2):
        sweeper.round(conn)
    assert deletion.deleted_jobs(conn, aside=True) == []


def test_a_purge_counts_no_job_whose_own_row_is_locked(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr(purge, "LOCK_WAIT_SECONDS", 0.1)
    own, free = (ended(conn, name=name, days=1) for name in ("own", "free"))
    deletion.mark_deleted(conn, [own])
    with psycopg.connect(database_url, application_name="an app") as app:
        app.execute("SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE", (own,))
        code = main(["purge", str(own), str(free)])
        said = capsys.readouterr()
        assert (code, said.out) == (1, "deleted 1 job with 10 items\n")
        locked = f"callboard: job {own}: it can't be deleted yet: its row is locked, perhaps by process "
        assert said.err.startswith(f"{locked}{app.info.backend_pid} of an app"), said.err
    assert deletion.deleted_jobs(conn, aside=True) == [own]


def test_a_user_who_may_not_delete_sets_no_job_aside(conn: Conn) -> None:
    """Or others would leave it alone, too."""
    job = ended(conn, name="plain", days=1)
    deletion.mark_deleted(conn, [job])
    with conn.transaction():
        conn.execute("CREATE ROLE weak_purger")
        conn.execute("GRANT USAGE ON SCHEMA callboard TO weak_purger")
        conn.execute("GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA callboard TO weak_purger")
        conn.execute("SET LOCAL ROLE weak_purger")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
            list(deletion.delete_rows(conn, job))
        conn.execute("RESET ROLE")
        assert deletion.jobs_set_aside(conn, [job]) == {}
        raise psycopg.Rollback


# Late and at once ----------------------------------------------------------------------------------------------------


def test_late_outcomes_of_a_leaving_job_change_nothing_and_leave_nothing(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "CHUNK_ITEMS", 5)
    job = stopped(conn)
    actions.delete(conn, job, ANNA)
    child = NewItem(job, "work", "default", "child", b"{}", None, 0)
    late: dict[Any, Any] = {"succeeded": [1, 7], "failed": [2, 8], "retrying": [3, 9]}
    steps = deletion.delete_rows(conn, job)
    next(steps)
    record(conn, job, late)
    born = Event(job, 6, 1, "succeeded", 0.1, 0.0, 1, children=(child,))
    outcomes.record(conn, [born, Event(job, 0, 1, "retrying", 0.1, 0.0, 1, BAD, Retry(0.0))], 0.0)
    run(conn, job, [0, 5])
    claims.park(conn, [(job, 1, 1), (job, 5, 1)])
    assert claims.postpone(conn, job, 0, 1, "work")
    assert state(conn, job) is None
    assert sum(steps) == 6  # the five that were left, and the child
    assert set(rows(conn, job).values()) == {0}
    record(conn, job, late)
    run(conn, job, [0, 5])
    claims.park(conn, [(job, 5, 1)])
    assert set(rows(conn, job).values()) == {0}


def test_a_message_of_a_job_that_is_gone_is_dropped_with_a_line(conn: Conn, caplog: pytest.LogCaptureFixture) -> None:
    job = stopped(conn)
    actions.delete(conn, job, ANNA)
    clear(conn, job)
    assert claim(conn, make_attempt(job, 3), make_worker(conn)) is None
    assert caplog.text.count(f"a message carries item {job}/3, which the database doesn't have") == 1


def test_workers_are_told_of_jobs_that_left_with_messages_in_rabbitmq(conn: Conn) -> None:
    done, cut = ended(conn), stopped(conn)
    for job in (done, cut):
        actions.delete(conn, job, ANNA)
        clear(conn, job)
    for within in (None, 20.0):
        told = {control.job: control for control in workers.job_controls(conn, within)}
        assert done not in told
        assert told[cut].over
        assert told[cut].epoch == 1
    conn.execute("UPDATE callboard.deleted_jobs SET deleted_at = now() - interval '1 hour'")
    assert workers.job_controls(conn, 20.0) == []
    assert len(workers.job_controls(conn, None)) == 1
    conn.execute("UPDATE callboard.deleted_jobs SET deleted_at = now() - interval '2 years'")
    deletion.delete_old_rows(conn, None)
    assert workers.job_controls(conn, None) == []


def test_a_submission_whose_job_was_deleted_is_told(conn: Conn) -> None:
    job = make_job(conn, 1, sealed=False)
    actions.cancel(conn, job, ANNA)
    conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 hour'")
    close_stopped(conn)
    actions.delete(conn, job, ANNA)
    assert submission.store_chunk(conn, job, 1, [(b"{}", None)], keyed=False) == ("stopped", 1)
    clear(conn, job)
    assert submission.store_chunk(conn, job, 1, [(b"{}", None)], keyed=False) == ("deleted", 1)
    assert set(rows(conn, job).values()) == {0}


@pytest.mark.parametrize("first", ["retry", "delete"])
def test_a_retry_races_a_deletion_and_one_wins(first: str, conn: Conn, database_url: str) -> None:
    """The second waits for the first's transaction, and then sees what became of the job."""
    job = ended(conn)
    by: dict[str, Any] = {
        "retry": lambda c: retry_action.retry(c, job, ANNA, RetrySelection()),
        "delete": lambda c: actions.delete(c, job, ANNA),
    }
    second = "delete" if first == "retry" else "retry"
    with connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            by[first](conn)
            waiting = pool.submit(by[second], other)
            assert wait_until(lambda: waits(database_url), 300)
        error = waiting.exception(20)
    if first == "retry":
        assert isinstance(error, NotPossible)
        assert state(conn, job) == "running"
        assert set(rows(conn, job).values()) != {0}
    else:
        assert isinstance(error, NoSuchJob)
        assert state(conn, job) is None
        clear(conn, job)
        assert set(rows(conn, job).values()) == {0}


def test_a_retry_that_is_faster_than_the_sweep_keeps_the_job(conn: Conn, database_url: str) -> None:
    job = ended(conn, days=31)
    with connect(database_url) as other:
        with conn.transaction():
            retry_action.retry(conn, job, ANNA, RetrySelection())
            assert deletion.mark_expired(other, 30 * DAY) == []
        assert deletion.mark_expired(other, 30 * DAY) == []
    assert state(conn, job) == "running"


def test_a_flush_that_is_under_way_is_waited_for(conn: Conn, database_url: str) -> None:
    """It holds an item of the chunk: what it adds goes with the item."""
    job = stopped(conn)
    actions.delete(conn, job, ANNA)
    with connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            record(conn, job, {"succeeded": [1], "failed": [2], "retrying": [3]})
            waiting = pool.submit(clear, other, job)
            assert wait_until(lambda: waits(database_url), 300)
        assert waiting.result(300) == 10
    assert set(rows(conn, job).values()) == {0}


def test_a_purge_blocks_nobody(conn: Conn, database_url: str) -> None:
    """Everything that others do passes while the transactions of a purge are open: a lock would time out."""
    job, busy = ended(conn, 100), make_job(conn, 10, sealed=False)
    worker = make_worker(conn)
    with connect(database_url) as other:
        other.execute("SET lock_timeout = '5s'")
        with conn.transaction():
            actions.delete(conn, job, ANNA)
            for _ in deletion.delete_rows(conn, job):
                pass
            record(other, busy, {"succeeded": [0], "failed": [1], "retrying": [2]}, worker=worker)
            run(other, busy, [3], worker=worker)
            send(other, busy, 10)
            assert claim_outbox(other, 100)
            assert publishing.claim_job(other) is None
            workers.beat(other, worker, [(busy, 3)])
            retry_action.retry(other, busy, ANNA, RetrySelection())
            sweep.sample_jobs(other)
            sweep.drop_messages_of_ended_jobs(other)
            close_jobs(other)
            stop_overdue_jobs(other)
            assert deletion.mark_expired(other, 0.001) == []
            new = make_job(other, 5)
            assert drift(other) == []
            assert state(other, job) == "completed"  # until it is committed
    assert state(conn, new)
    assert set(rows(conn, job).values()) == {0}


def test_two_that_clear_the_same_job_share_the_work(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "CHUNK_ITEMS", 50)
    job = make_job(conn, 3000)
    record(conn, job, {"succeeded": range(2500), "failed": range(2500, 3000)})
    actions.delete(conn, job, ANNA)
    start = threading.Barrier(3)

    def work(_: int) -> int:
        with connect(database_url) as own:
            start.wait(300)
            return clear(own, job)

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(work, range(3))) == 3000
    assert set(rows(conn, job).values()) == {0}


# Commands and the API ------------------------------------------------------------------------------------------------


def test_purge_deletes_what_is_due_and_what_is_named(call: Call, conn: Conn) -> None:
    old, kept, young, open_ = (ended(conn, days=31), ended(conn, days=31, keep="60d"), ended(conn), make_job(conn, 1))
    assert call("purge") == (0, "deleted 1 job with 10 items\n", "")
    assert [state(conn, job) for job in (old, kept, young, open_)] == [None, "completed", "completed", "pending"]
    age(conn, young, 31)
    assert json.loads(call("purge", "--json")[1]) == {"jobs": 1, "items": 10}
    assert state(conn, kept) == "completed"
    assert call("purge", kept)[1] == "deleted 1 job with 10 items\n"
    assert conn.execute("SELECT id FROM callboard.jobs").fetchall() == [(open_,)]


def test_purge_deletes_stages_with_their_job_and_counts_what_was_deleted_before(call: Call, conn: Conn) -> None:
    parent, stages = finished_stages(conn)
    deleted = ended(conn)
    actions.delete(conn, deleted, ANNA)
    assert call("purge", parent)[1] == "deleted 1 job with 18 items\n"
    assert call("purge")[1] == "deleted 1 job with 10 items\n"
    assert [state(conn, job) for job in (*stages, deleted)] == [None] * 3


@pytest.mark.parametrize(
    ("other", "said"), [("OPEN", "can be deleted when it is over; `cancel` ends it"), ("5", "there is no job 5")]
)
def test_purge_refuses_and_has_done_nothing(other: str, said: str, call: Call, conn: Conn) -> None:
    done, open_ = ended(conn), make_job(conn, 1)
    code, printed, error = call("purge", done, open_ if other == "OPEN" else other)
    assert (code, printed, error.count("\n")) == (1, "", 1)
    assert said in error
    assert (state(conn, done), state(conn, open_)) == ("completed", "pending")


def test_purge_says_what_is_wrong_with_the_setting(call: Call, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_KEEP", "a month")
    job = ended(conn, days=4000)
    code, _, error = call("purge")
    assert (code, "CALLBOARD_KEEP must be a span" in error) == (2, True)
    assert state(conn, job) == "completed"


def test_keep_is_said_by_the_command(call: Call, conn: Conn) -> None:
    job = make_job(conn, 1)
    for given, kept in (("forever", "forever"), ("90d", "90d"), ("none", None)):
        assert call("limit", job, "--keep", given)[0] == 0
        assert json.loads(call("status", job, "--json")[1])["limits"].get("keep") == kept
    assert call("limit", job, "--keep", "long")[0] == 2


def test_the_api_deletes(conn: Conn, database_url: str) -> None:
    done, open_ = ended(conn), make_job(conn, 1)
    with served(open_app(database_url)) as address, httpx.Client(base_url=address) as http:
        where = f"/api/jobs/{done}"
        foreign = http.delete(where, headers={"Sec-Fetch-Site": "cross-site"})
        assert (foreign.status_code, state(conn, done)) == (403, "completed")
        assert http.request("DELETE", where, json={"all": True}).status_code == 422
        assert http.patch(where, json={"keep": "1h"}).json()["limits"] == {"keep": "1h"}
        assert http.patch(where, json={"keep": "1"}).status_code == 422
        refused = http.delete(f"/api/jobs/{open_}")
        assert (refused.status_code, "`cancel` ends it" in refused.json()["detail"]) == (409, True)
        gone = http.delete(where)
        assert (gone.status_code, gone.content) == (204, b"")
        for path in ("", "/items", "/items/1", "/errors", "/actions"):
            assert http.get(where + path).status_code == 404, path
        assert http.delete(where).status_code == 404
        assert [job["id"] for job in http.get("/api/jobs").json()["jobs"]] == [open_]
