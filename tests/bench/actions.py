"""How long an action on a job of very many items takes, and what it costs the disk."""

import time
from collections.abc import Callable
from typing import Any

from callboard.sql.pool import Conn, connect
from callboard.sql.writes import actions, retry_action, submission
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.bench.rig import Rig
from tests.support.jobs import make_job

WE = Requester("python", "bench")
CHUNK = 100_000

FAILED = """
WITH failed AS (
    UPDATE callboard.items SET state = 'failed', finished_at = now(), started_at = now()
    WHERE job_id = %(job)s RETURNING item
), counted AS (
    UPDATE callboard.jobs SET failed = total, state = 'completed', published = total, watermark = bulk_end,
           started_at = now(), finished_at = now() WHERE id = %(job)s
), noted AS (
    INSERT INTO callboard.errors
    SELECT %(job)s, total, total, now(), now(), 0, 'failed', 'ValueError', 'a.py:1', 'no', 'no'
    FROM callboard.jobs WHERE id = %(job)s
)
INSERT INTO callboard.attempts (job_id, ended_at, item, attempt, kind, retried, error_type, place, pattern, message)
SELECT %(job)s, now(), item, 1, 'failed', false, 'ValueError', 'a.py:1', 'no', 'no' FROM failed
"""


def table(rig: Rig, items: int) -> list[str]:
    """Rows of a Markdown table."""
    with connect(rig.database_url) as conn:
        job = _job(conn, items)
        rows = [
            _row(conn, "pause", lambda: actions.pause(conn, job, WE)),
            _row(conn, "resume", lambda: actions.resume(conn, job, WE)),
            _row(conn, "cancel, nothing published", lambda: actions.cancel(conn, job, WE)),
            _row(
                conn,
                "run again what was cancelled",
                lambda: retry_action.retry(conn, job, WE, RetrySelection(["cancelled"])),
            ),
        ]
        ended = _job(conn, items)
        conn.execute(FAILED, {"job": ended})
        rows.append(
            _row(conn, "retry all of them, failed", lambda: retry_action.retry(conn, ended, WE, RetrySelection()))
        )
    return [f"| {items:,} items | seconds | MiB written to tables |", "|---|---|---|", *rows]


def _job(conn: Conn, items: int) -> int:
    job = make_job(conn, 0, sealed=False)
    for start in range(0, items, CHUNK):
        chunk = [(b'{"args":[],"kwargs":{}}', None)] * min(CHUNK, items - start)
        submission.store_chunk(conn, job, start, chunk, keyed=False)
    submission.seal_job(conn, job)
    return job


def _row(conn: Conn, what: str, say: Callable[[], Any]) -> str:
    before = _size(conn)
    begun = time.perf_counter()
    say()
    taken = time.perf_counter() - begun
    return f"| {what} | {taken:.3f} | {(_size(conn) - before) / 2**20:.1f} |"


def _size(conn: Conn) -> int:
    row = conn.execute(
        "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
        " WHERE relnamespace = 'callboard'::regnamespace AND relkind = 'r'"
    ).fetchone()
    return int(row[0]) if row else 0
