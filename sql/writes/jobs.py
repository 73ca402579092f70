"""Jobs are locked, recounted, paused, stopped and closed."""

from collections.abc import Iterable, Sequence

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.statements import statement


def lock_jobs(conn: Conn, jobs: Iterable[int]) -> dict[int, tuple[int, bool]]:
    """Lock jobs that are about to get items: {job: (total, takes items)}."""
    return {row[0]: (row[1], row[2]) for row in conn.execute(statement("lock_jobs"), (sorted(set(jobs)),))}


def recount_jobs(conn: Conn, jobs: Sequence[int]) -> None:
    """Count anew what these jobs say of their items; they are locked."""
    conn.execute(statement("recount_jobs"), (list(jobs),))


def pause_job(conn: Conn, job: int) -> bool:
    """Start nothing more of a job until it is resumed; False when it is paused, stopped or over already."""
    return conn.execute(statement("pause_job"), (job,)).fetchone() is not None


def resume_job(conn: Conn, job: int) -> bool:
    """Let a paused job go on; False when it is not paused, or stopped."""
    return conn.execute(statement("resume_job"), (job,)).fetchone() is not None


def stop_job(conn: Conn, job: int, state: str, reason: str | None) -> bool:
    """Start nothing more of a job: it will be in this state when what is in hand has ended; False when it is stopped
    or over already.
    """
    told = {"job": job, "state": state, "reason": reason}
    return conn.execute(statement("stop_job"), told).fetchone() is not None


def stop_overdue_jobs(conn: Conn) -> list[int]:
    """Stop the jobs whose deadline passed; returns them."""
    return [row[0] for row in conn.execute(statement("stop_overdue_jobs"))]


def close_stopped(conn: Conn) -> list[int]:
    """Close the jobs that are being stopped and have nothing in hand any more; returns them."""
    parameters = {"heard": timings.CONTROLS_HEARD_SECONDS, "dead_after": timings.DEAD_AFTER_SECONDS}
    return [row[0] for row in conn.execute(statement("close_stopped"), parameters)]


def close_jobs(conn: Conn) -> list[int]:
    """Close what is done and nobody closed; returns the jobs."""
    return [row[0] for row in conn.execute(statement("close_jobs"))]
