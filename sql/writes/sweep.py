"""What the elected sweep looks for and repairs."""

from collections.abc import Sequence

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import (
    OpenJob,
    PublishMark,
)
from callboard.sql.statements import statement


def renew_lease(conn: Conn, name: str, holder: str, lease: float) -> bool:
    """Stay the one that does `name` for `lease` seconds more; False when that ended meanwhile."""
    row = conn.execute(statement("renew_lease"), {"name": name, "holder": holder, "lease": lease}).fetchone()
    return row is not None


def acquire_lease(conn: Conn, name: str, holder: str, lease: float) -> bool:
    """Become the one that does `name` for `lease` seconds."""
    row = conn.execute(
        statement("acquire_lease"), {"name": name, "holder": holder, "lease": lease}
    ).fetchone()
    return row is not None


def release_lease(conn: Conn, name: str, holder: str) -> None:
    """Let somebody else do it."""
    conn.execute(statement("release_lease"), (name, holder))


def standing_jobs_to_seal(conn: Conn) -> list[int]:
    """Standing jobs whose day is over."""
    return [row[0] for row in conn.execute(statement("standing_jobs_to_seal"))]


def drop_messages_of_stopped_jobs(conn: Conn) -> None:
    """What was to be published for jobs that are over never is."""
    conn.execute(statement("drop_messages_of_stopped_jobs"), (timings.DROP_BATCH_MESSAGES,))


def analyze_grown_tables(conn: Conn) -> None:
    """Have the plans of statements fit tables that have grown; nothing where none has."""
    conn.execute(statement("analyze_grown_tables"))


def sample_jobs(conn: Conn) -> None:
    """A point for each open job that moved."""
    conn.execute(statement("sample_jobs"))


def jobs_in_flight(conn: Conn, quiet: float) -> list[OpenJob]:
    """Open jobs of which something is published and has no end."""
    return [OpenJob(*row) for row in conn.execute(statement("jobs_in_flight"), {"quiet": quiet})]


def unheld_items(
    conn: Conn, job: int, limit: int, *, low: int = 0, high: int = timings.MAX_ITEM
) -> list[tuple[int, int, str]]:
    """Published open items from `low` up to and without `high` that nobody is known to hold: (item, attempt, queue)."""
    parameters = {"job": job, "low": low, "high": high, "limit": limit}
    return list(conn.execute(statement("unheld_items"), parameters))


def oldest_heartbeat_seconds(conn: Conn) -> float | None:
    """Seconds since the live worker that has not beaten for longest did; None when none lives."""
    row = conn.execute(statement("oldest_heartbeat_seconds")).fetchone()
    return row[0] if row else None


def publish_mark(conn: Conn, limit: int) -> PublishMark | None:
    """What is yet to be published, as of now; None when no job is open."""
    rows = conn.execute(
        statement("publish_mark"), {"window": timings.PUBLISH_WINDOW_ITEMS, "limit": limit}
    ).fetchall()
    return PublishMark([(row[0], row[1], row[2]) for row in rows], rows[0][3]) if rows else None


def passed_mark(conn: Conn, queue: str, mark: PublishMark) -> bool:
    """Whether a queue has given out what came into it after `mark`, and so everything that came before."""
    jobs, lows, totals = zip(*mark.jobs, strict=True)
    parameters = {
        "queue": queue, "job": list(jobs), "low": list(lows), "total": list(totals), "last": mark.last,
    }  # fmt: skip
    row = conn.execute(statement("passed_mark"), parameters).fetchone()
    return row is not None and bool(row[0])


def republish(conn: Conn, job: int, items: Sequence[tuple[int, int]], holder: str | None = None) -> int:
    """Send lost items, (item, attempt), again, if `holder` still has the lease; returns how many needed it."""
    parameters = {
        "job": job,
        "item": [i[0] for i in items],
        "attempt": [i[1] for i in items],
        "holder": holder,
    }
    return conn.execute(statement("republish"), parameters).rowcount
