"""Lock, recount, pause, stop and close jobs."""

from collections.abc import Iterable, Sequence

from callboard.sql import settings, timings
from callboard.sql.pool import Conn
from callboard.sql.rows import ALL_JOBS, JobControl, JobFacts, JobPage
from callboard.sql.statements import statement


def lock_jobs(conn: Conn, jobs: Iterable[int]) -> dict[int, bool]:
    """Lock jobs; return {job: whether it takes items}."""
    return dict(conn.execute(statement("lock_jobs"), (sorted(set(jobs)),)).fetchall())


def job_facts(conn: Conn, job: int) -> JobFacts:
    """Return what an app gave with a job; nothing for a deleted job."""
    row = conn.execute(statement("job_facts"), (job,)).fetchone()
    return JobFacts(*row) if row else JobFacts("", None, "{}")


def recount_jobs(conn: Conn, jobs: Sequence[int]) -> None:
    """Set the counters of locked jobs by a count of their items."""
    conn.execute(statement("recount_jobs"), (list(jobs),))


def pause_job(conn: Conn, job: int) -> bool:
    """Start nothing more of a job until it is resumed; return False when it is paused, stopped or over already."""
    return conn.execute(statement("pause_job"), (job,)).fetchone() is not None


def resume_job(conn: Conn, job: int) -> bool:
    """Let a paused job go on; return False when it is not paused, or stopped."""
    return conn.execute(statement("resume_job"), (job,)).fetchone() is not None


def stop_job(conn: Conn, job: int, state: str, reason: str | None) -> bool:
    """Start nothing more of a job, which gets this state once its last running item has ended; return False when it
    is stopped or over already.
    """
    parameters = {"job": job, "state": state, "reason": reason}
    return conn.execute(statement("stop_job"), parameters).fetchone() is not None


def stop_overdue_jobs(conn: Conn) -> list[int]:
    """Stop the jobs whose deadline passed; return their ids."""
    return [row[0] for row in conn.execute(statement("stop_overdue_jobs"))]


def stop_jobs_without_actor(conn: Conn, page: JobPage = ALL_JOBS) -> list[int]:
    """Stop the jobs whose actor no worker has announced for too long; return their ids."""
    parameters = {"actor_wait": settings.ACTOR_WAIT.get(), "after": page.after, "last": page.last}
    return [row[0] for row in conn.execute(statement("stop_jobs_without_actor"), parameters)]


def stop_jobs_of_queue(conn: Conn, queue: str) -> list[JobControl]:
    """Stop the jobs that have messages in a queue or are to publish some; return their control states."""
    return [JobControl(*row) for row in conn.execute(statement("stop_jobs_of_queue"), {"queue": queue})]


def queue_has_open_items(conn: Conn, queue: str) -> bool:
    """Return whether an item of a queue did not end, and its job goes on."""
    (found,) = next(conn.execute(statement("queue_has_open_items"), {"queue": queue}))
    return bool(found)


def close_stopped(conn: Conn) -> list[int]:
    """Close the jobs that are being stopped and run no item any more; return their ids."""
    parameters = {"heard": timings.CONTROLS_HEARD_SECONDS, "dead_after": timings.DEAD_AFTER_SECONDS}
    return [row[0] for row in conn.execute(statement("close_stopped"), parameters)]


def close_jobs(conn: Conn, page: JobPage = ALL_JOBS) -> list[int]:
    """Close sealed jobs whose items are all final, should `record` have missed them; return their ids."""
    parameters = {"after": page.after, "last": page.last}
    return [row[0] for row in conn.execute(statement("close_jobs"), parameters)]
