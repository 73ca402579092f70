"""Lock, recount, pause, stop and close jobs."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from psycopg.errors import LockNotAvailable

from callboard.sql import settings
from callboard.sql.errors import DATA_ERRORS, UserFunctionWaits
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import ALL_JOBS, JobControl, JobFacts, JobPage
from callboard.sql.statements import execute, fetch, fetch_ids, fetch_one, fetch_value, gives_row


def lock_jobs(conn: Conn, jobs: Iterable[int]) -> dict[int, bool]:
    """Lock jobs; return {job: whether it takes items}."""
    return dict(execute(conn, "lock_jobs", jobs=sorted(set(jobs))).fetchall())


def job_facts(conn: Conn, job: int) -> JobFacts:
    """Return the app's data of a job; empty data for a deleted job."""
    return fetch_one(conn, JobFacts, "job_facts", job=job) or JobFacts("", None, "{}")


def write_each(write: Callable[[list[int]], list[int]], ids: Iterable[int]) -> list[int]:
    """Run a statement that writes these jobs and returns those that it skipped; return these. If a job can't be
    written, for example because of a user's trigger, write each job alone, and also return those that can't be written.
    """
    ids = list(ids)
    try:
        return write(ids)
    except (UserFunctionWaits, *DATA_ERRORS):
        return ids if len(ids) == 1 else [left for one in ids for left in write_each(write, [one])]


def recount_jobs(conn: Conn, jobs: Sequence[int]) -> None:
    """Recount the counters of locked jobs from their items."""
    execute(conn, "recount_jobs", jobs=list(jobs))


def pause_job(conn: Conn, job: int) -> bool:
    """Pause a job: no more items start until it is resumed. Return False when it is paused, stopped or over."""
    return gives_row(conn, "pause_job", job=job)


def resume_job(conn: Conn, job: int) -> bool:
    """Resume a paused job; return False when it is not paused, or stopped."""
    return gives_row(conn, "resume_job", job=job)


def stop_job(conn: Conn, job: int, state: str, reason: str | None) -> bool:
    """Stop a job: no more items start, and it gets this state once its last running item has ended. Returns False when
    it is already stopped or over.
    """
    return gives_row(conn, "stop_job", job=job, state=state, reason=reason)


def stop_overdue_jobs(conn: Conn, page: JobPage = ALL_JOBS, *, writes: bool = True) -> list[int]:
    """Stop the jobs whose deadline passed; return their ids. Without `writes` this, and those below, only find them."""
    return fetch_ids(conn, "stop_overdue_jobs", writes=writes, **page._asdict())


def stop_jobs_without_actor(conn: Conn, page: JobPage = ALL_JOBS, *, writes: bool = True) -> list[int]:
    """Stop the jobs whose actor no worker has announced for too long; return their ids."""
    actor_wait = settings.ACTOR_WAIT.get()
    return fetch_ids(conn, "stop_jobs_without_actor", actor_wait=actor_wait, writes=writes, **page._asdict())


def stop_jobs_of_queue(conn: Conn, queue: str) -> list[JobControl]:
    """Stop the jobs that have messages in a queue, or messages to publish to it; return their control states."""
    return fetch(conn, JobControl, "stop_jobs_of_queue", queue=queue)


def queue_has_open_items(conn: Conn, queue: str) -> bool:
    """Return whether a queue has items that have not ended, in jobs that go on."""
    return bool(fetch_value(conn, "queue_has_open_items", queue=queue))


def close_stopped(conn: Conn, page: JobPage = ALL_JOBS, *, writes: bool = True) -> list[int]:
    """Close the jobs that are being stopped and have no running item; return their ids.

    Raises LockNotAvailable when another transaction has locked one of their turns for `LOCK_WAIT_SECONDS`, and
    DATA_ERRORS when a user's trigger refuses one; then no job is closed.
    """
    return fetch_ids(conn, "close_stopped", writes=writes, **page._asdict())


def try_close_stopped(conn: Conn, page: JobPage = ALL_JOBS) -> list[int]:
    """Like `close_stopped`, but return an empty list if that raises one of these errors: the sweep logs them."""
    with suppress(LockNotAvailable, *DATA_ERRORS), transaction(conn):  # in an action, a savepoint: the action goes on
        return close_stopped(conn, page)
    return []


def close_jobs(conn: Conn, page: JobPage = ALL_JOBS, *, writes: bool = True) -> list[int]:
    """Close sealed jobs whose items are all final, if `record` missed them; return their ids."""
    return fetch_ids(conn, "close_jobs", writes=writes, **page._asdict())
