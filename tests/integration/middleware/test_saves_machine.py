"""Whatever attempts, deaths, copies and errors there are: a saved row is there if its item succeeded, and only then."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from callboard.middleware.journal import journal as module
from callboard.middleware.journal.journal import Entry, Journal
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Event, Failure, Retry, Saves
from callboard.sql.writes import saves
from tests.integration.sql.test_record import drift
from tests.support.deliveries import make_attempt
from tests.support.jobs import BAD, NOT_NEEDED, make_job
from tests.support.process_parts import RecordedAttempts, process_on
from tests.support.workers import wait_until

TABLE = "CREATE TABLE saved (job bigint, item int, attempt int, mark text UNIQUE CHECK (mark <> 'refused'))"
#: How an attempt ends, and what it saves: what has one mark is unique among all that is saved.
ENDS: Any = st.sampled_from(
    [
        ("succeeded", None), ("succeeded", None), ("succeeded", "a"), ("succeeded", "b"), ("succeeded", "refused"),
        ("succeeded", "broken"), ("failed", None), ("skipped", None), ("retrying", None), ("died", None),
    ]
)  # fmt: skip
FAILURES: dict[str, Failure] = {"failed": BAD, "skipped": NOT_NEEDED, "retrying": BAD, "died": BAD}
#: What becomes of a flush: its transaction is lost; or its answer is, so it is written again.
FLUSHES: Any = st.sampled_from(["committed", "committed", "lost", "answer lost"])


def entry(job: int, item: int, number: int, state: str, mark: str | None) -> Entry:
    """An attempt that has ended, and saved a row with its mark."""
    kept = None
    if state == "succeeded":
        text = "INSERT INTO absent VALUES (%s)" if mark == "broken" else "INSERT INTO saved VALUES (%s, %s, %s, %s)"
        save, size = saves.frozen(
            text, [mark] if mark == "broken" else [job, item, number, mark], "actors.py:1 in work"
        )
        kept = Saves([save], size)
    event = Event(
        job, item, number, "retrying" if state == "died" else state, 0.01, time.monotonic(), 1, FAILURES.get(state),  # type: ignore[arg-type]
        Retry(0.0) if state in ("retrying", "died") else None, saves=kept, crashed=state == "died",
    )  # fmt: skip
    return Entry(make_attempt(job, item, number, ended=True), event, dead_letter=state == "failed")


class Saving(RuleBasedStateMachine):
    """A job of three items; a message of any of its attempts may come again at any time."""

    def __init__(self, conn: Conn) -> None:
        super().__init__()
        self.conn = conn

    @initialize()
    def begin(self) -> None:
        self.job = make_job(self.conn, 3)
        self.conn.execute("TRUNCATE saved")

    @rule(ends=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), ENDS), min_size=1, max_size=3), what=FLUSHES)
    def flush(self, ends: Sequence[tuple[int, int, tuple[str, str | None]]], what: str) -> None:
        """Outcomes of the last attempts, or of the ones before, are written together."""
        now: dict[int, int] = dict(
            self.conn.execute("SELECT item, attempt FROM callboard.items WHERE job_id = %s", (self.job,))
        )
        entries = {item: entry(self.job, item, max(1, now[item] - late), *end) for item, late, end in ends}
        if what == "lost":
            with self.conn.transaction():
                module._write(list(entries.values()), self.conn)
                raise psycopg.Rollback
        for _ in range(2 if what == "answer lost" else 1):
            module._write(list(entries.values()), self.conn)

    @invariant()
    def what_succeeded_is_saved_once(self) -> None:
        if hasattr(self, "job"):
            saved = "SELECT item, attempt FROM saved WHERE job = %s ORDER BY 1"
            succeeded = "SELECT item, attempt FROM callboard.items WHERE job_id = %s AND state = 'succeeded' ORDER BY 1"
            mine = (self.job,)
            assert self.conn.execute(saved, mine).fetchall() == self.conn.execute(succeeded, mine).fetchall()


@pytest.mark.filterwarnings("default")
def test_what_is_saved_is_what_succeeded(pooled_url: str) -> None:
    with connect(pooled_url) as conn:
        conn.execute(TABLE)
        run_state_machine_as_test(
            lambda: Saving(conn),  # type: ignore[arg-type]
            settings=settings(
                max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
        assert drift(conn) == []


# What may pass, and what does not -------------------------------------------------------------------------------------


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    with connect(database_url) as connection:
        connection.execute(TABLE)
        yield connection


def saving(job: int, item: int, text: str) -> Entry:
    made = entry(job, item, 1, "succeeded", None)
    assert made.event.saves is not None
    made.event.saves.statements.append(saves.frozen(text, None, "actors.py:2 in work")[0])
    return made


def written(url: str, entries: Sequence[Entry]) -> None:
    """A journal records these outcomes."""
    with process_on(url) as process:
        attempts = RecordedAttempts()
        journal = Journal(process, attempts, lambda *_: None)
        for one in entries:
            journal.add(one)
        assert wait_until(lambda: len(attempts.acknowledged) == len(entries), 300)
        assert journal.close(300)


def states(conn: Conn, job: int) -> list[str]:
    found = conn.execute("SELECT state::text FROM callboard.items WHERE job_id = %s ORDER BY item", (job,))
    return [state for (state,) in found]


def test_a_statement_that_ends_its_connection_fails_its_item(database_url: str, conn: Conn) -> None:
    """After three times; the others of its flush are saved meanwhile, or afterwards."""
    job = make_job(conn, 5)
    ends = "SELECT pg_terminate_backend(pg_backend_pid())"
    written(database_url, [saving(job, n, ends if n == 2 else "SELECT 1") for n in range(5)])
    assert states(conn, job) == ["succeeded", "succeeded", "failed", "succeeded", "succeeded"]
    (message,) = conn.execute("SELECT message FROM callboard.errors WHERE job_id = %s", (job,)).fetchall()
    assert message == (f"the connection broke each of the 3 times that it ran; it saves: {ends}",)


#: Statements that leave something in their session.
LEAVE = [
    "SELECT set_config('statement_timeout', '1', false)", "SELECT set_config('search_path', 'elsewhere', false)",
    "SELECT set_config('search_path', 'elsewhere', true)", "SELECT set_config('role', 'pg_monitor', false)",
    "INSERT INTO saved (mark) SELECT set_config('app.tenant', '5', false)", "SELECT pg_advisory_lock(7)",
    "SELECT set_config('session_authorization', 'pg_monitor', false)", "SELECT set_config('seed', '0.5', false)",
    "SELECT set_config('transaction_read_only', 'on', false)", "SELECT set_config('datestyle', 'German', false)",
    "SELECT set_config('default_transaction_read_only', 'on', false)", "SELECT run('CREATE TEMP TABLE saved ()')",
    "SELECT set_config('idle_in_transaction_session_timeout', '600s', false)", "SELECT 1 AS a INTO TEMP saved",
    "SELECT set_config('client_encoding', 'LATIN1', false)", "SELECT run('LISTEN app')",
    "SELECT run('DECLARE c CURSOR WITH HOLD FOR SELECT 1')", "SELECT run('SET CONSTRAINTS ALL IMMEDIATE')",
]  # fmt: skip
SESSION = """
    SELECT current_user, session_user, ARRAY(SELECT pg_listening_channels()),
           (SELECT array_agg(name || '=' || setting ORDER BY name) FROM pg_settings WHERE setting <> reset_val),
           nullif(current_setting('app.tenant', true), ''), (SELECT count(*) FROM pg_cursors WHERE is_holdable),
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
           (SELECT count(*) FROM pg_class WHERE relpersistence = 't')
"""


@pytest.mark.parametrize("through", ["database_url", "pooled_url"])
def test_what_a_statement_leaves_in_its_session_reaches_no_other_item(
    through: str, conn: Conn, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its flush save where they mean to, and the session is the next time as it was."""
    monkeypatch.setattr(saves, "TRANSACTION_SECONDS", 300.0)  # all in one, however slow the machine is
    conn.execute("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.saved (LIKE saved)")
    run = "CREATE FUNCTION run(text) RETURNS int LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; RETURN 1; END'"
    conn.execute(run)
    plain = "INSERT INTO saved (mark) VALUES (NULL)"
    texts = [text for leaves in LEAVE for text in (plain, leaves)] + [plain]
    job = make_job(conn, len(texts))
    with process_on(request.getfixturevalue(through)) as process, process.pool.connection() as session:
        session.execute(SESSION)
        before = session.execute(SESSION).fetchall()
        _, later = module._write([saving(job, n, text) for n, text in enumerate(texts)], session)
        assert session.execute(SESSION).fetchall() == before
    assert not later
    assert states(conn, job) == ["succeeded"] * len(texts)
    plain_rows = len(texts) + len(LEAVE) + 1  # each item saves a row beside its statement
    assert conn.execute("SELECT count(*) FROM saved").fetchone() == (plain_rows + 1,)
    assert conn.execute("SELECT count(*) FROM elsewhere.saved").fetchone() == (0,)


@pytest.mark.parametrize("older", [False, True])
def test_a_setting_that_ends_its_session_fails_its_item_alone(older: bool, request: pytest.FixtureRequest) -> None:
    """Also in the first item of a flush, of which the connection breaks in the statements of another."""
    url = request.getfixturevalue("older_database_url" if older else "database_url")
    ends = "SELECT set_config('transaction_timeout', '1', false), pg_sleep(1)"
    with connect(url) as conn:
        conn.execute(TABLE)
        job = make_job(conn, 5)
        written(url, [saving(job, n, "SELECT pg_sleep(0.01)" if n else ends) for n in range(5)])
        assert states(conn, job) == ["failed", *["succeeded"] * 4]
        found = conn.execute("SELECT message FROM callboard.errors WHERE job_id = %s", (job,)).fetchone()
        assert found is not None
        assert found[0].endswith(f"; it saves: {ends}")


def test_a_statement_that_is_too_slow_is_tried_again_and_then_fails_its_item(
    database_url: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its job are saved, and those of other jobs at once."""
    monkeypatch.setattr(saves, "_BEGIN", saves._BEGIN.replace("'5s'", "'1s'"))
    monkeypatch.setattr(saves, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(module, "FIRST_BUSY_SECONDS", 0.01)
    job, other = make_job(conn, 3), make_job(conn, 1)
    slow = "SELECT pg_sleep(60)"
    written(
        database_url,
        [saving(job, 0, slow), *(saving(job, n, "SELECT 1") for n in (1, 2)), saving(other, 0, "SELECT 1")],
    )
    assert states(conn, job) == ["failed", "succeeded", "succeeded"]
    assert states(conn, other) == ["succeeded"]
    (message,) = conn.execute("SELECT message FROM callboard.errors WHERE job_id = %s", (job,)).fetchall()
    assert message == (f"canceling statement due to statement timeout; it saves: {slow}",)


def test_slow_statements_hold_no_more_than_their_own_items(conn: Conn, database_url: str) -> None:
    """While they run, the row of their job is free; a transaction begins no more of them after a second."""
    job = make_job(conn, 10)
    _, later = module._write([saving(job, n, "SELECT pg_sleep(0.4)") for n in range(10)], conn)
    assert 5 <= len(later) < 10
    assert states(conn, job).count("succeeded") == 10 - len(later)
