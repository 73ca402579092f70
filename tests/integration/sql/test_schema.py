"""The schema: statements fit it, its enums are the code's words, and code and schema that don't fit are told apart."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import psycopg
import pytest
from psycopg import sql

from callboard.commands.services.child_process import NotStarted
from callboard.sql import migrate, states
from callboard.sql.migrate import SchemaError
from callboard.sql.pool import Conn, connect, transaction
from callboard.sql.reads import queries
from callboard.sql.statements import documented, statement
from tests.support.databases import WORKING, as_role, clerk, database, waiting, with_database
from tests.support.jobs import make_job, record
from tests.support.pgbouncer import pgbouncer
from tests.support.workers import StartWorker, wait_until

ACTORS = "tests.support.pipeline_actors"
#: Statements that can't be prepared: COPY, DO blocks, and what belongs to the staging table of a transaction.
UNPREPARED = {"copy_items", "copy_to_staging", "create_staging_table", "bound_lock_waits", "prepare_schema"}
STAGING = {"insert_staged_items"}
AHEAD = "INSERT INTO callboard.migrations (number, name, breaking) VALUES (9001, '9001_from_the_future', %s)"


@pytest.fixture(scope="module")
def schema(postgres_url: str, template: str) -> Iterator[Conn]:
    """A connection to a migrated database that nothing is written to."""
    with database(postgres_url, template) as name, connect(with_database(postgres_url, name)) as connection:
        yield connection


@pytest.mark.parametrize("name", sorted(documented().keys() - UNPREPARED))
def test_every_statement_can_be_prepared_on_the_schema(name: str, schema: Conn) -> None:
    """As psycopg does it: parameters become $1, $2 …, and PostgreSQL finds every table, column and type."""
    query = psycopg._queries.PostgresQuery(psycopg.adapt.Transformer(schema))
    text = statement(name)
    named = {word.split(")")[0]: None for word in text.split("%(")[1:]}
    count = text.replace("%%", "").count("%s")
    query.convert(text, named or [None] * count)
    with schema.transaction(force_rollback=True):
        if name in STAGING:
            schema.execute(statement("create_staging_table"))
        schema.execute(b"PREPARE looked_at AS " + query.query)
    schema.execute("DEALLOCATE ALL")


@pytest.mark.parametrize(
    ("enum", "words"),
    [
        ("job_state", states.JOB_STATES),
        ("item_state", tuple(states.MOVES)),
        ("attempt_kind", get_args(states.AttemptKind)),
    ],
)
def test_the_enums_of_the_database_are_the_words_of_the_code(enum: str, words: tuple[str, ...], schema: Conn) -> None:
    rows = schema.execute(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = %s::regtype ORDER BY enumsortorder", (f"callboard.{enum}",)
    )
    assert tuple(row[0] for row in rows) == words


def test_the_states_fit_each_other() -> None:
    assert set(states.FINAL) < set(states.ITEM_STATES)
    assert set(states.JOB_FINAL) < set(states.JOB_STATES)


# Migrations ----------------------------------------------------------------------------------------------------------


def test_migrating_twice_changes_nothing(empty_database_url: str) -> None:
    names = [step.name for step in migrate.known_migrations()]
    assert migrate.migrate(empty_database_url) == names
    assert migrate.migrate(empty_database_url) == []


def test_a_schema_that_was_made_for_a_role_is_migrated_by_it(empty_database_url: str) -> None:
    """It may not make one; and nothing need be changed for a role that may not change it."""
    names = [step.name for step in migrate.known_migrations()]
    with connect(empty_database_url) as admin, clerk(admin) as owner, clerk(admin) as reader:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for database"):
            migrate.migrate(as_role(empty_database_url, owner))
        admin.execute(f"CREATE SCHEMA callboard AUTHORIZATION {owner}".encode())
        assert migrate.migrate(as_role(empty_database_url, owner)) == names
        for right in ("USAGE ON SCHEMA callboard", "SELECT ON ALL TABLES IN SCHEMA callboard"):
            admin.execute(f"GRANT {right} TO {reader}".encode())
        assert migrate.migrate(as_role(empty_database_url, reader)) == []


def test_the_rights_that_a_role_lacks_are_said_as_statements_that_give_them(database_url: str) -> None:
    with connect(database_url) as admin, clerk(admin) as role, connect(as_role(database_url, role)) as conn:
        admin.execute("REVOKE EXECUTE ON FUNCTION callboard.analyze_grown FROM PUBLIC")
        with pytest.raises(SchemaError, match="the database's role lacks rights") as error:
            migrate.check_rights(conn)
        told, rights = str(error.value).partition(": ")[2], (*WORKING, "EXECUTE ON ALL FUNCTIONS IN SCHEMA callboard")
        assert told.split("; ") == [f"GRANT {right} TO {role}" for right in rights]
        admin.execute(told.encode())
        migrate.check_rights(conn)


def test_a_migration_lets_others_work_while_it_waits_for_a_long_reader(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "ALTER TABLE callboard.jobs ADD COLUMN hue text"
    step = migrate.Migration(9002, "9002_adds_a_column", breaking=False, text=text)
    known = migrate.known_migrations()
    monkeypatch.setattr(migrate, "known_migrations", lambda: [*known, step])
    monkeypatch.setattr(migrate, "LOCK_PAUSE_SECONDS", 0.2)
    with ThreadPoolExecutor() as threads, connect(database_url) as reader:
        with reader.transaction():
            reader.execute("SELECT count(*) FROM callboard.jobs")
            migrating = threads.submit(migrate.migrate, database_url)
            assert wait_until(lambda: waiting(database_url) == 1, 300)
            conn.execute("SET statement_timeout = '30s'")
            conn.execute("SELECT count(*) FROM callboard.jobs")  # behind it, for two seconds at most
            assert not migrating.done()
        assert migrating.result(300) == [step.name]
        monkeypatch.setattr(migrate, "LOCK_TRIES_SECONDS", 0.0)
        monkeypatch.setattr(migrate, "known_migrations", lambda: [*known, step, replace(step, number=9003)])
        with reader.transaction():
            reader.execute("SELECT count(*) FROM callboard.jobs")
            with pytest.raises(SchemaError, match="another session has locked one of its tables"):
                migrate.migrate(database_url)


# Databases as companies have them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_in_which_not_every_text_can_be_stored_is_refused(encoding: str, postgres_url: str) -> None:
    name = f"callboard_{encoding.lower()}"
    how = f"ENCODING '{encoding}' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} {how}")
        try:
            with pytest.raises(SchemaError, match=f"the database has the encoding {encoding}, in which not every text"):
                migrate.migrate(with_database(postgres_url, name))
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout", "idle_session_timeout"])
def test_a_limit_of_each_session_that_would_end_what_we_do_is_refused(limit: str, database_url: str) -> None:
    with connect(database_url) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET {limit} = '50s'")
        with connect(database_url) as conn:
            assert migrate.check(conn) is None
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET {limit} = '500ms'")
        says = rf"{limit} is 0.5 s in sessions of the role \w+, and must be \d+ s or more, or 0: ALTER ROLE"
        with connect(database_url) as conn, pytest.raises(SchemaError, match=says):
            migrate.check(conn)


def test_a_pooler_that_pools_statements_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_PREPARE", "off")
    refused = pytest.raises(SchemaError, match="set pool_mode = transaction")
    with pgbouncer(database_url, "statement") as url, connect(url) as conn, refused:
        migrate.check(conn)


def test_a_role_from_which_rows_are_hidden_is_refused(database_url: str) -> None:
    """It would take an item that it does not see for one that is gone, and drop its message."""
    role = f"clerk_{uuid.uuid4().hex}"
    with connect(database_url) as conn:
        conn.execute(f"CREATE ROLE {role}; GRANT ALL ON ALL TABLES IN SCHEMA callboard TO {role}".encode())
        conn.execute(f"GRANT USAGE ON SCHEMA callboard TO {role}; SET ROLE {role}".encode())
        try:
            assert migrate.check(conn) is None
            conn.execute("RESET ROLE; ALTER TABLE callboard.items ENABLE ROW LEVEL SECURITY")
            assert migrate.check(conn) is None  # its owner sees all
            conn.execute(f"SET ROLE {role}".encode())
            with pytest.raises(SchemaError, match=r"row level security of callboard\.items applies to the role"):
                migrate.check(conn)
        finally:
            conn.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}".encode())


@pytest.mark.parametrize(
    "stop", ["SET session_replication_role = replica", "ALTER TABLE callboard.outbox DISABLE TRIGGER USER"]
)
def test_a_session_in_which_our_triggers_do_not_run_is_refused(stop: str, conn: Conn) -> None:
    """Jobs would stand: the triggers tell the publisher what there is to publish."""
    conn.execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    conn.execute("CREATE TRIGGER of_the_app BEFORE INSERT ON callboard.jobs FOR EACH ROW EXECUTE FUNCTION f()")
    conn.execute("ALTER TABLE callboard.jobs DISABLE TRIGGER of_the_app")
    assert migrate.check(conn) is None
    conn.execute(stop.encode())
    with pytest.raises(SchemaError, match=r"the trigger \w+ of callboard\.\w+ does not run in sessions of the role"):
        migrate.check(conn)


@pytest.mark.parametrize("through", ["database_url", "pooled_url"])
@pytest.mark.parametrize("default", ["datestyle = 'German, DMY'", "default_transaction_isolation = 'repeatable read'"])
def test_statements_do_not_depend_on_the_defaults_of_the_database(
    default: str, through: str, database_url: str, request: pytest.FixtureRequest
) -> None:
    with connect(database_url) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET {default}")
    url = request.getfixturevalue(through)
    with connect(url) as conn, connect(url) as other:
        job = make_job(conn, 2)
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        found = queries.run(conn, queries.job(job))
        assert found is not None
        assert found["created_at"].endswith("Z")
        with ThreadPoolExecutor() as threads:
            with transaction(other):
                record(other, job, {"succeeded": [0]})
                recording = threads.submit(record, conn, job, {"succeeded": [1]})
                assert wait_until(lambda: waiting(database_url) == 1, 300)
            recording.result(300)  # it waits for the row, and is not refused since the row has changed
        assert (queries.run(conn, queries.job(job)) or {})["state"] == "completed"
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_the_text_of_an_error_has_no_rows(conn: Conn) -> None:
    job = make_job(conn, 1)
    with pytest.raises(psycopg.errors.CheckViolation) as raised:
        conn.execute("UPDATE callboard.jobs SET total = -1, metadata = '{\"secret\": 1}' WHERE id = %s", (job,))
    assert raised.value.diag.message_detail is not None
    assert "secret" not in str(raised.value)
    copying = conn.cursor().copy("COPY callboard.items (job_id, item, args) FROM STDIN")
    with pytest.raises(psycopg.errors.UniqueViolation) as copied, transaction(conn), copying as copy:
        copy.write_row((job, 0, b"secret"))
    assert str(copied.value) == 'duplicate key value violates unique constraint "items_pkey"'


def test_two_that_migrate_at_once_apply_each_step_once(empty_database_url: str) -> None:
    gate = threading.Barrier(4)

    def run() -> list[str]:
        gate.wait()
        return migrate.migrate(empty_database_url)

    with ThreadPoolExecutor(4) as pool:
        applied = [done for future in [pool.submit(run) for _ in range(4)] for done in future.result()]
    assert applied == [step.name for step in migrate.known_migrations()]
    with connect(empty_database_url) as conn:
        assert migrate.check(conn) is None


def test_a_step_is_added_to_the_schema_of_an_older_release(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    added = migrate.Migration(9000, "9000_added", breaking=False, text="CREATE TABLE callboard.added ()")
    steps = [*migrate.known_migrations(), added]
    monkeypatch.setattr(migrate, "known_migrations", lambda: steps)
    with connect(database_url) as conn:
        with pytest.raises(SchemaError, match="behind this code by 9000_added: run `callboard migrate`"):
            migrate.check(conn)
        assert migrate.migrate(database_url) == ["9000_added"]
        assert migrate.check(conn) is None


def test_a_migration_that_fails_leaves_nothing(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = migrate.Migration(9999, "9999_broken", breaking=False, text="CREATE TABLE callboard.x (); SELECT 1 / 0")
    steps = [*migrate.known_migrations(), broken]
    monkeypatch.setattr(migrate, "known_migrations", lambda: steps)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate.migrate(empty_database_url)
    with connect(empty_database_url) as conn, pytest.raises(SchemaError, match="callboard migrate"):
        migrate.check(conn)


def behind(url: str) -> None:
    """As if an older release had made the schema, by another step."""
    with connect(url) as conn:
        conn.execute("UPDATE callboard.migrations SET number = 0, name = '0000_from_the_past'")


def ahead(url: str) -> None:
    with connect(url) as conn:
        conn.execute(AHEAD, (False,))


def ahead_and_breaking(url: str) -> None:
    with connect(url) as conn:
        conn.execute(AHEAD, (True,))


def absent(url: str) -> None:
    with connect(url) as conn:
        conn.execute("DROP SCHEMA callboard CASCADE")


def test_a_schema_behind_the_code_says_what_is_missing(database_url: str) -> None:
    behind(database_url)
    with connect(database_url) as conn, pytest.raises(SchemaError, match=migrate.known_migrations()[-1].name):
        migrate.check(conn)


def test_a_schema_ahead_by_steps_that_add_is_a_warning(database_url: str) -> None:
    ahead(database_url)
    with connect(database_url) as conn:
        assert "9001_from_the_future" in (migrate.check(conn) or "")
    assert migrate.migrate(database_url) == []


def test_a_schema_ahead_by_a_breaking_step_is_refused(database_url: str) -> None:
    ahead_and_breaking(database_url)
    with connect(database_url) as conn, pytest.raises(SchemaError, match="9001_from_the_future"):
        migrate.check(conn)
    with pytest.raises(SchemaError, match="9001_from_the_future"):
        migrate.migrate(database_url)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (absent, "no callboard schema yet: run `callboard migrate`"),
        (behind, "is behind this code"),
        (ahead_and_breaking, "which older code can't run on"),
    ],
)
def test_a_worker_refuses_a_schema_that_does_not_fit(
    spoil: Callable[[str], None], says: str, database_url: str, worker: StartWorker, tmp_path: Path
) -> None:
    spoil(database_url)
    with pytest.raises(NotStarted, match="ended before it was ready"):
        worker(ACTORS, threads=2)
    log = (tmp_path / "worker-0.log").read_text(encoding="utf-8")
    assert says in log
    assert "Traceback" not in log


def test_a_worker_starts_on_a_schema_ahead_by_steps_that_add_and_warns(database_url: str, worker: StartWorker) -> None:
    ahead(database_url)
    assert "9001_from_the_future, which only add to it" in worker(ACTORS, threads=2).output


def test_two_databases_made_one_after_the_other_share_no_job_ids(empty_database_url: str) -> None:
    """Messages of the database before it may still lie in RabbitMQ."""
    made = sql.SQL("SELECT nextval('callboard.job_ids')")
    ids = []
    for _ in range(2):
        migrate.migrate(empty_database_url)
        with connect(empty_database_url) as conn:
            row = conn.execute(made).fetchone()
            assert row is not None
            ids.append(row[0])
            conn.execute("DROP SCHEMA callboard CASCADE")
    assert ids[0] > 1_000_000
    assert ids[1] >= ids[0]
