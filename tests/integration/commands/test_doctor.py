"""`callboard doctor` on real services: all is well, and each thing that is not."""

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from callboard.commands import database, doctor
from callboard.commands.main import main
from callboard.middleware.ping import PING
from callboard.middleware.rabbitmq import queue_admin
from callboard.sql import timings
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.writes import actions, submission
from callboard.sql.writes.requests import Requester
from tests.support.databases import WORKING, as_role, clerk, waits, with_database
from tests.support.jobs import make_job
from tests.support.pgbouncer import pgbouncer
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.vhosts import Broker
from tests.support.workers import wait_until


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """One worker process for these tests."""
    folder = tmp_path_factory.mktemp("doctor")
    with running_pipeline(postgres_url, template, broker, ["work", "stubborn"], folder) as made:
        yield made


@pytest.fixture
def here(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """This process has the worker's database and broker."""
    for name in ("DATABASE_URL", "AMQP_URL"):
        monkeypatch.setenv(name, pipeline.environment[name])
    monkeypatch.setattr(queue_admin, "ANSWER_SECONDS", TIMEOUT)
    return pipeline


def examined(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit code, and the findings by what they are about."""
    capsys.readouterr()
    code = main(["doctor", "--json", *options])
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(capsys.readouterr().out)["findings"]:
        found.setdefault(finding["about"], []).append(finding)
    return code, found


def test_a_ping_goes_through_every_queue_and_leaves_nothing(here: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = examined(capsys, "--timeout", f"{TIMEOUT:.0f}")
    assert code == 0, found
    assert not [f for findings in found.values() for f in findings if f["state"] == "wrong"]
    pings = {about: findings[0]["found"] for about, findings in found.items() if about.startswith("ping")}
    queues = queries.run(here.conn, queries.workers(state="alive"))[0][0]["queues"]
    assert set(pings) == {f"ping through {queue}" for queue in queues}
    for hops in pings.values():
        assert [hop.rsplit(" ", 2)[0] for hop in hops.split(", ")] == ["row", "publish and delivery", "outcome", "read"]
    assert queries.run(here.conn, queries.jobs())[0] == []
    (worker,) = queries.run(here.conn, queries.workers(state="alive"))[0]
    assert PING not in worker["actors"]
    assert main(["doctor", "--no-ping"]) == 0
    assert capsys.readouterr().out.endswith("nothing is wrong\n")


def test_what_stands_still_is_named_with_what_to_do(here: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    failed = here.submit("stubborn", {"number": 1, "wins_at": 4})
    assert failed.wait(TIMEOUT)["failed"] == 1
    assert wait_until(lambda: here.ready("default.XQ") > 0, TIMEOUT)
    waits = here.submit("work", {"number": 1}, delay="1h")
    with connect(here.environment["DATABASE_URL"]) as conn:
        stuck = submission.create_job(
            conn,
            name="stuck",
            key=None,
            tenant="",
            actor="nobody_has_it",
            queue="default",
            metadata={},
            created_by=None,
        ).job
        submission.store_chunk(conn, stuck, 0, [(b"{}", None)], keyed=False)
        unsealed = submission.create_job(
            conn, name="open", key=None, tenant="", actor="work", queue="default", metadata={}, created_by=None
        ).job
        submission.open_job(conn, unsealed)
        quiet = "UPDATE callboard.jobs SET updated_at = now() - interval '1 minute' WHERE id = ANY (%s)"
        conn.execute(quiet, ([stuck, unsealed, waits.id],))
        conn.execute("INSERT INTO callboard.actors (name, queue) VALUES ('old', 'gone')")
        try:
            code, found = examined(capsys, "--no-ping")
        finally:
            conn.execute("DELETE FROM callboard.jobs WHERE id = ANY (%s)", ([stuck, unsealed, waits.id],))
            conn.execute("DELETE FROM callboard.actors WHERE name = 'old'")
    assert code == 1
    assert found[f"job {stuck}"][0]["state"] == "wrong"
    assert "nobody_has_it" in found[f"job {stuck}"][0]["found"]
    for asked in (waits.id, unsealed):
        assert found[f"job {asked}"][0]["state"] == "note", "a job that waits as it was asked to is not wrong"
    assert found["queue gone"][0]["found"] == "RabbitMQ does not have it"
    (letters,) = (f for f in found["queue default"] if "dead letter" in f["found"])
    assert (letters["state"], "callboard put-back default" in letters["do"]) == ("note", True)


def test_dead_letters_that_have_no_queue_are_noted() -> None:
    """As after somebody deleted it, to be rid of those in it: RabbitMQ then drops the next ones without a word."""
    row = {"name": "q", "ready": 0, "consumers": 1, "dead": None, "unserved": None, "pending": 0}
    found = {finding.state: finding.found for finding in doctor._queue(row, missing=False)}
    assert found["note"].startswith("RabbitMQ does not have its dead-letter queue")
    unknown = doctor._queue({**row, "ready": None}, missing=True)
    assert not [finding for finding in unknown if "dead letters" in finding.found]


def test_a_queue_whose_worker_does_not_answer_is_wrong(here: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert here.worker is not None
    frozen = here.worker.children()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        code, found = examined(capsys, "--timeout", "1")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    (ping,) = found["ping through default"]
    assert (code, ping["state"]) == (1, "wrong")
    assert "no answer within 1 s" in ping["found"]
    assert "has the actor" not in ping["found"], "no worker announces the actor of pings"
    assert "log of a worker" in ping["do"]


def test_a_worker_whose_user_may_not_read_its_queue_is_told_from_none(
    postgres_url: str, template: str, broker: Broker, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with running_pipeline(postgres_url, template, broker, ["work"], tmp_path) as made:
        for name in ("DATABASE_URL", "AMQP_URL"):
            monkeypatch.setenv(name, made.environment[name])
        url = made.environment["AMQP_URL"]
        broker.allow(url, read=False)
        broker.close_connections(url)

        def refused() -> bool:
            (row,), _ = queries.run(made.conn, queries.workers(state="alive"))
            return "refused for user" in (row["trouble"] or "")

        assert wait_until(refused, TIMEOUT)
        made.submit("work", {"number": 1})
        assert wait_until(lambda: made.ready("default") > 0, TIMEOUT)
        code, found = examined(capsys, "--timeout", "1")
        broker.allow(url)
    assert code == 1
    (worker,) = (about for about in found if about.startswith("worker "))
    vhost = urlsplit(url).path[1:]
    do = f"give the user its rights: rabbitmqctl set_permissions -p {vhost} callboard '.*' '.*' '.*'"
    assert [found[about][0]["do"] for about in (worker, "ping through default")] == [do, do]
    (queue,) = (one for one in found["queue default"] if one["state"] == "wrong")
    assert queue["do"] == f"look at {worker}, which has this queue and can't consume it"


def test_who_locks_others_out_is_named(
    conn: Conn, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr(doctor, "LOCK_SECONDS", 0.0)
    monkeypatch.setattr(timings, "ACTION_LOCK_WAIT_SECONDS", TIMEOUT)
    job = make_job(conn, 1)
    with psycopg.connect(database_url, application_name="psql") as other, ThreadPoolExecutor(1) as thread:
        other.execute("SELECT FROM callboard.jobs WHERE id = %s FOR UPDATE", (job,))
        blocked = thread.submit(actions.pause, conn, job, Requester("cli", "anna"))
        wait_until(lambda: waits(database_url), TIMEOUT)
        (lock,) = examined(capsys, "--no-ping")[1]["locks"]
        other.rollback()
        blocked.result()
        assert lock["state"] == "wrong"
        assert lock["found"].startswith(f"process {other.info.backend_pid} of psql on ")
        assert lock["found"].endswith(", keeps 1 session waiting")
        other.execute("LOCK TABLE callboard.jobs")
        code, found = examined(capsys, "--no-ping")
        assert (code, found["locks"][0]["found"].endswith(", blocks a whole table for all others")) == (1, True)
        assert "workers" not in found
        other.rollback()
    assert "locks" not in examined(capsys, "--no-ping")[1]


def test_who_is_idle_with_locks_for_which_others_wait_only_for_a_moment_is_named(conn: Conn, database_url: str) -> None:
    """So is whom the lock of a whole table waits for, since readers wait behind that."""
    job = make_job(conn, 1)

    def found(seconds: float) -> list[dict[str, Any]]:
        return queries.run(conn, queries.long_locks(seconds))

    with psycopg.connect(database_url, application_name="psql") as other, ThreadPoolExecutor(1) as thread:
        other.execute("SELECT FROM callboard.items")
        assert found(0.0) == [], "it only reads"
        other.execute("SELECT FROM callboard.items WHERE job_id = %s FOR UPDATE", (job,))
        assert found(300.0) == []
        wait_until(lambda: found(0.2), TIMEOUT)
        (lock,) = found(0.2)
        assert (lock["pid"], lock["waiting"], lock["whole"]) == (other.info.backend_pid, 0, False)
        assert doctor._lock(lock).found.endswith(", has locked jobs or items")
        with psycopg.connect(database_url) as change:
            changed = thread.submit(change.execute, "LOCK TABLE callboard.items")
            wait_until(lambda: any(lock["whole"] for lock in found(0.2)), TIMEOUT)
            (lock,) = found(0.2)
            assert (lock["pid"], lock["waiting"], lock["whole"]) == (other.info.backend_pid, 1, True)
            assert found(300.0) == []
            other.rollback()
            changed.result()


def test_a_database_that_takes_no_writes_is_named(
    conn: Conn, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is by a command that writes."""
    monkeypatch.setenv("DATABASE_URL", f"{database_url}&options=-c%20default_transaction_read_only%3Don")
    code, found = examined(capsys, "--no-ping")
    assert (code, found["database"][-1]["found"]) == (1, "the database can only be read")
    assert main(["cancel", str(make_job(conn, 1))]) == 1
    assert capsys.readouterr().err.startswith("callboard: the database can only be read: cannot execute ")


def test_a_connection_that_is_lost_on_the_way_is_no_database_that_is_away(
    conn: Conn, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: Conn) -> None:
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr(doctor, "_workers", lost)
    code, found = examined(capsys, "--no-ping")
    assert (code, found["database"][-1]["do"]) == (1, "try again")
    assert found["database"][-1]["found"].startswith("the connection to the database was lost: server closed")


def test_a_role_that_lacks_rights_is_named(
    here: Pipeline, conn: Conn, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with clerk(conn, *WORKING[:2]) as role:
        monkeypatch.setenv("DATABASE_URL", as_role(database_url, role))
        code, found = examined(capsys, "--no-ping")
        do = f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA callboard TO {role}"
        assert (code, found["rights"][0]["state"], found["rights"][0]["do"]) == (1, "wrong", do)
        monkeypatch.setattr(doctor, "_workers", lambda conn: conn.execute("SELECT nextval('callboard.job_ids')"))
        code, found = examined(capsys, "--no-ping")
    assert found["database"][-1]["found"] == "the database refuses this user: permission denied for sequence job_ids"


def test_a_pooler_with_prepared_statements_is_noted(
    here: Pipeline, pooler_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = urlsplit(here.environment["DATABASE_URL"]).path[1:]
    monkeypatch.setenv("DATABASE_URL", with_database(pooler_url, name))
    assert examined(capsys, "--no-ping")[1]["pooler"][0]["do"].endswith("set CALLBOARD_PREPARE=off")
    monkeypatch.setenv("CALLBOARD_PREPARE", "off")
    assert examined(capsys, "--no-ping")[1]["pooler"][0]["state"] == "ok"


def test_a_pooler_without_a_free_connection_is_waited_for_aloud(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SILENT_SECONDS", 0.1)
    with pgbouncer(database_url, "session", size=1) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        with psycopg.connect(url) as holder:
            holder.execute("SELECT 1")
            code = main(["doctor", "--json"])
    done = capsys.readouterr()
    place = re.escape(f":6432{urlsplit(database_url).path}")
    assert re.fullmatch(f"callboard: waiting for a connection to the database at .*{place}\n", done.err)
    (finding,) = (one for one in json.loads(done.out)["findings"] if one["about"] == "database")
    assert (code, finding["state"], finding["found"].endswith(": query_wait_timeout")) == (1, "wrong", True)
    assert finding["do"].endswith("or set pool_mode = transaction")


def test_what_is_missing_is_named(
    empty_database_url: str, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://anna:hunter2@127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://anna:hunter2@127.0.0.1:1/none")
    code, found = examined(capsys)
    assert (code, found["database"][0]["state"], found["broker"][0]["state"]) == (1, "wrong", "wrong")
    assert "hunter2" not in str(found)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    code, found = examined(capsys)
    assert (code, found["schema"][0]["do"]) == (1, "run `callboard migrate`")
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("AMQP_URL")
    monkeypatch.setenv("CALLBOARD_KEEPS", "1d")
    code, found = examined(capsys)
    assert (code, found["workers"][0]["found"]) == (1, "none is alive")
    assert found["broker"][0]["state"] == "note"
    assert "CALLBOARD_KEEPS" in found["settings"][0]["found"]
