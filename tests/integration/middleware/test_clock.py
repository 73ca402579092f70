"""The clock of the database is set back: the process that sweeps has all that waits follow, or tries once more."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from callboard.middleware.process.process import Process
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql.pool import Conn
from callboard.sql.writes import lanes, publishing
from callboard.sql.writes import sweep as statements
from tests.support.jobs import make_job, make_worker

#: Seconds by which the times of the rows are ahead, and by which they may be late in the end: the lease's age.
HOUR, LATE = 3_600, 600

#: Seconds from now to each time.
AHEAD = """
    SELECT extract(epoch FROM time - now())::float8 FROM (
        SELECT unnest(ARRAY[publish_until, updated_at, created_at, started_at, not_before]) AS time FROM callboard.jobs
        UNION ALL SELECT (h.value ->> 'until')::timestamptz FROM callboard.jobs, jsonb_each(holds) AS h
        UNION ALL SELECT taken_at FROM callboard.samples UNION ALL SELECT started_at FROM callboard.running
        UNION ALL SELECT due_at FROM callboard.turns
        UNION ALL SELECT due_at FROM callboard.outbox UNION ALL SELECT due_at FROM callboard.callbacks
        UNION ALL SELECT beat_at FROM callboard.workers
    ) AS times WHERE time < timestamptz '9000-01-01Z'
"""
#: What makes the times of the rows that hour later.
LATER = (
    "UPDATE callboard.leases SET until = until + interval '1 h'",
    "UPDATE callboard.workers SET beat_at = beat_at + interval '1 h'",
    """UPDATE callboard.jobs
       SET publish_until = publish_until + interval '1 h', updated_at = updated_at + interval '1 h',
           created_at = created_at + interval '1 h', started_at = now() + interval '1 h', state = 'running'""",
    "INSERT INTO callboard.samples (job_id, taken_at, final, failed) SELECT id, started_at, 1, 0 FROM callboard.jobs",
    """INSERT INTO callboard.running (job_id, item, attempt, worker, started_at)
       SELECT id, 2, 1, 1, started_at FROM callboard.jobs""",
    """INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)
       SELECT id, 0, 2, now() + interval '1 h', false FROM callboard.jobs""",
    """INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, due_at, job)
       SELECT id, now(), 'failed', 'https://a/', 'a', now() + interval '1 h', '{}' FROM callboard.jobs""",
)
#: Claims as they are made now, beside that of a publisher; and all of them.
FRESH = (
    "UPDATE callboard.jobs SET submitting_until = now() + interval '45 s'",
    """INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, claimed_until)
       SELECT id, 0, 2, now(), false, now() + interval '8 s' FROM callboard.jobs""",
    """INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, claimed_until, job)
       SELECT id, now(), 'failed', c.url, c.url, c.actor, c.actor, now() + make_interval(secs => lease), '{}'
       FROM callboard.jobs, (VALUES ('https://a/', NULL, 45), (NULL, 'told', 8)) AS c (url, actor, lease)""",
)
CLAIMS = """
    SELECT 'publisher', publish_until AS until FROM callboard.jobs
    UNION ALL SELECT 'submitter', submitting_until FROM callboard.jobs
    UNION ALL SELECT 'message', claimed_until FROM callboard.outbox
    UNION ALL SELECT coalesce(url, actor), claimed_until FROM callboard.callbacks ORDER BY 1
"""


@pytest.fixture
def process(database_url: str) -> Iterator[Process]:
    made = Process(database_url)
    yield made
    made.close()


def test_what_breaks_off_is_done_once_more(process: Process, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(process, lambda: pytest.fail("nobody asks the broker"))
    make_worker(conn)
    job = make_job(conn, 3, published=1)
    assert publishing.claim_given_job(conn, job) is not None
    assert statements.acquire_lease(conn, sweep._holder, 10.0, 40.0) is not None
    lanes.hold(conn, job, 0, {}, HOUR, "")
    for made in LATER:
        conn.execute(made.encode())
    follow: Any = statements.follow_clock_set_back

    def breaks_off(conn: Conn, seconds: float) -> None:
        follow(conn, seconds)
        raise psycopg.errors.DeadlockDetected("a deadlock")

    monkeypatch.setattr(Sweep, "round", lambda *_: None)
    monkeypatch.setattr(statements, "follow_clock_set_back", breaks_off)
    sweep._periodic.run_step()
    assert max(ahead for (ahead,) in conn.execute(AHEAD)) > HOUR - LATE
    monkeypatch.setattr(statements, "follow_clock_set_back", follow)
    sweep._periodic.run_step()
    assert max(ahead for (ahead,) in conn.execute(AHEAD)) < LATE


def test_nothing_is_claimed_by_a_clock_set_back(conn: Conn) -> None:
    """A submission that nobody renews would be taken for broken off, and its job would fail."""
    make_worker(conn)
    job = make_job(conn, 3, published=1, sealed=False)
    conn.execute("UPDATE callboard.jobs SET submitting_until = NULL, control_at = NULL")
    for made in LATER:
        conn.execute(made.encode())
    statements.follow_clock_set_back(conn, HOUR)
    claims = conn.execute(CLAIMS).fetchall()
    assert claims == [(who, None) for who in ("https://a/", "message", "publisher", "submitter")]
    assert conn.execute("SELECT control_at FROM callboard.jobs WHERE id = %s", [job]).fetchone() == (None,)


def test_what_is_claimed_after_the_clock_was_set_back_stays_claimed(conn: Conn) -> None:
    job = make_job(conn, 3, published=1)
    assert publishing.claim_given_job(conn, job) is not None
    for claim in FRESH:
        conn.execute(claim.encode())
    made = conn.execute(CLAIMS).fetchall()
    assert len(made) == 5
    statements.follow_clock_set_back(conn, HOUR)
    assert conn.execute(CLAIMS).fetchall() == made
