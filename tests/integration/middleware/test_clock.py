"""The clock of the database is set back: the process that sweeps has all that waits follow, or tries once more."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from callboard.middleware.process.process import Process
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql.pool import Conn
from callboard.sql.writes import publishing
from callboard.sql.writes import sweep as statements
from tests.support.jobs import make_job, make_worker

#: Seconds by which the times of the rows are ahead, and by which they may be late in the end: the lease's age.
HOUR, LATE = 3_600, 600

#: Seconds from now to each time.
AHEAD = """
    SELECT extract(epoch FROM time - now())::float8 FROM (
        SELECT publish_until AS time FROM callboard.jobs UNION ALL SELECT updated_at FROM callboard.jobs
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
       SET publish_until = publish_until + interval '1 h', updated_at = updated_at + interval '1 h'""",
    """INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)
       SELECT id, 0, 2, now() + interval '1 h', false FROM callboard.jobs""",
    """INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, due_at, job)
       SELECT id, now(), 'failed', 'https://a/', 'a', now() + interval '1 h', '{}' FROM callboard.jobs""",
)


@pytest.fixture
def process(database_url: str) -> Iterator[Process]:
    made = Process(database_url)
    yield made
    made.close()


def test_what_breaks_off_is_done_once_more(process: Process, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(process, lambda: pytest.fail("nobody asks the broker"))
    make_worker(conn)
    job = make_job(conn, 3, published=1)
    assert publishing.claim_job(conn, job=job) is not None
    assert statements.acquire_lease(conn, sweep._holder, 10.0, 40.0) is not None
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
